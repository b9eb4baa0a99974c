"""Entities: those of transformers' pipeline, at characters of the text as given, and no seam in a long one."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import answers
import numpy as np
import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import torchless
from torchless import BundleError, ContextLengthError, Entity, GenerationError, InputError, TokenClassification
from torchless.export import export
from torchless.tasks.entities import STRATEGIES, tokens_of, words
from torchless.windows import seams

CopyOf = Callable[[Path], Path]
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "THING")
TOKENIZERS = {**answers.TOKENIZERS, "byte-level, spaces kept": tiny.bpe}
UNKNOWN = {"wordpiece": "[UNK]", "unigram": "<unk>", "byte-level": "<unk>", "byte-level, spaces kept": None}
POSITIONS = 40

TEXTS = [
    "Call me Ishmael.",
    "  Der naïve Käse is old: the 🎉 whale, 中文字 façade! ",
    "Call\r\nme\tIshmael.\n\n",
    "a",
    "",
    " ",
    "[SEP] <s> 🎉🎉 don't ship-ahoy",
]
UNICODE = st.text(
    st.sampled_from("aé 中文🎉\u200d\n\r\t .!ßÄ") | st.characters(exclude_categories=["Cs"]), max_size=30
) | st.sampled_from(TEXTS)
MANY = st.lists(st.sampled_from(["ship", " ", " the", "Käse", "🎉", "\r\n", " white", "e\u0301"]), max_size=60)


@dataclass(frozen=True)
class Case:
    """A tokenizer with a model, ours and as transformers' pipeline of this model_max_length."""

    ours: TokenClassification
    model: Any
    tokenizer: str

    def pipeline(self, length: int = POSITIONS, **options: Any) -> Any:
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=TOKENIZERS[self.tokenizer](), model_max_length=length,
            unk_token=UNKNOWN[self.tokenizer], pad_token={"wordpiece": "[PAD]"}.get(self.tokenizer, "!"),
        )  # fmt: skip
        return transformers.pipeline(
            "token-classification", model=self.model, tokenizer=fast, device="cpu", **options
        )


def case(name: str, folder: Path, *, seed: int = 5, alone: bool = False) -> Case:
    """alone: a model that judges each token for itself, so that a window's edge changes nothing."""
    model = tiny.bert(
        "token-classification", seed, vocab_size=512, max_position_embeddings=512 if alone else POSITIONS,
        id2label=dict(enumerate(LABELS)),
    )  # fmt: skip
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(4)  # or all tokens look alike
        if alone:
            model.bert.embeddings.position_embeddings.weight.zero_()
            for layer in model.bert.encoder.layer:
                layer.attention.output.dense.weight.zero_()
        usual = model(torch.arange(500).reshape(-1, 20)).logits.mean((0, 1))
        model.classifier.bias.sub_(usual)  # or one label has nearly all tokens
    checkpoint = tiny.save(model, folder / "checkpoint", TOKENIZERS[name]())
    return Case(torchless.load(export(checkpoint, folder / "bundle")), model, name)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {name: case(name, tmp_path_factory.mktemp("case")) for name in TOKENIZERS}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {name: case(name, tmp_path_factory.mktemp("alone"), alone=True) for name in TOKENIZERS}


@pytest.fixture(scope="module")
def ner(cases: dict[str, Case]) -> TokenClassification:
    return cases["wordpiece"].ours


def without_space(text: str, start: int, end: int) -> tuple[int, int]:
    """The same rule as torchless.spans.trim, one character at a time, for the texts here."""
    if text[start:end].isspace() or start == end:
        return start, end
    while text[start].isspace():
        start += 1
    while text[end - 1].isspace():
        end -= 1
    while text[end:] and unicodedata.category(text[end]) in ("Mn", "Me"):
        end += 1
    return start, end


def same(ours: list[Entity], theirs: list[dict[str, Any]], text: str) -> None:
    """Ours are transformers' entities of at least one character, at the words that their offsets mean."""
    theirs = [one for one in theirs if one["start"] < one["end"]]
    places = [without_space(text, one["start"], one["end"]) for one in theirs]
    assert [(one.start, one.end) for one in ours] == places
    assert [one.label for one in ours] == [one.get("entity", one.get("entity_group")) for one in theirs]
    assert [one.index for one in ours] == [one.get("index") for one in theirs]
    np.testing.assert_allclose([one.score for one in ours], [one["score"] for one in theirs], atol=1e-5)
    assert [one.word for one in ours] == [text[slice(*place)] for place in places]


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_entities_equal_those_of_the_pipeline(cases: dict[str, Case], name: str, strategy: str) -> None:
    theirs = cases[name].pipeline(aggregation_strategy=strategy)
    texts = [text for text in TEXTS if text.strip() and len(cases[name].ours.tokenizer.ids(text)) <= POSITIONS]
    assert len(texts) >= 4
    for ignored in (["O"], [], ["THING", "I-LOC", "PER"]):
        ours = cases[name].ours(texts, aggregation_strategy=strategy, ignore_labels=ignored)
        assert any(ours)
        for text, entities in zip(texts, ours, strict=True):
            same(entities, theirs(text, ignore_labels=ignored), text)


def test_a_text_of_nothing_has_no_entities_and_lists_give_lists(cases: dict[str, Case]) -> None:
    for one in cases.values():
        assert one.ours("") == [] and one.ours([]) == [] and one.ours(["", ""]) == [[], []]
        (listed,) = one.ours([TEXTS[0]])
        assert one.ours(TEXTS[0]) == listed
    assert cases["wordpiece"].ours(" \r\n") == []


@settings(max_examples=60, deadline=None)
@given(text=UNICODE, strategy=st.sampled_from(STRATEGIES), name=st.sampled_from(list(TOKENIZERS)), data=st.data())
def test_offsets_slice_the_text_to_the_word_and_no_token_is_lost_or_doubled(
    cases: dict[str, Case], text: str, strategy: str, name: str, data: st.DataObject
) -> None:
    ours = cases[name].ours
    room = 12 - ours.tokenizer.fast.num_special_tokens_to_add(False)
    stride = data.draw(st.integers(0, room - 1))
    length = data.draw(st.sampled_from([12, 13, 20]))
    entities = ours(text, aggregation_strategy=strategy, ignore_labels=[], stride=stride, max_length=length)
    for one in entities:
        assert one.word == text[one.start : one.end] and 0 <= one.start <= one.end <= len(text)
        assert one.word.strip() == one.word or not one.word.strip()
        assert not (one.word.strip() and text[one.end :] and unicodedata.category(text[one.end]) in ("Mn", "Me"))
        assert one.start < one.end
    encoding = ours.tokenizer.encode(text)
    places = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    if strategy == "none":
        assert [one.index for one in entities] == [i for i in places if len(range(*encoding.offsets[i]))]
    else:  # every character that a token stands for is in an entity
        covered = {i for one in entities for i in range(one.start, one.end)}
        needed = {i for place in places for i in range(*encoding.offsets[place])}
        assert all(text[i].isspace() for i in needed - covered)
        assert sorted(entities, key=lambda one: (one.start, one.end)) == entities


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(UNICODE, min_size=1, max_size=8), size=st.integers(1, 9), name=st.sampled_from(list(TOKENIZERS)),
    strategy=st.sampled_from(STRATEGIES), data=st.data(),
)  # fmt: skip
def test_a_batch_of_any_size_and_order_gives_what_each_text_gives_alone(
    cases: dict[str, Case], texts: list[str], size: int, name: str, strategy: str, data: st.DataObject
) -> None:
    ours = cases[name].ours
    order = data.draw(st.permutations(range(len(texts))))
    options: dict[str, Any] = {"aggregation_strategy": strategy, "stride": 5, "max_length": 16}
    got = ours([texts[i] for i in order], batch_size=size, **options)
    for index, entities in zip(order, got, strict=True):
        expected = ours(texts[index], **options)
        assert [(one.label, one.start, one.end) for one in entities] == [
            (one.label, one.start, one.end) for one in expected
        ]
        np.testing.assert_allclose([one.score for one in entities], [one.score for one in expected], atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    pieces=MANY, strategy=st.sampled_from(STRATEGIES), name=st.sampled_from(list(TOKENIZERS)),
    length=st.integers(5, 24), stride=st.integers(0, 20),
)  # fmt: skip
def test_windows_change_nothing_for_a_model_that_judges_each_token_for_itself(
    alone: dict[str, Case], pieces: list[str], strategy: str, name: str, length: int, stride: int
) -> None:
    ours, text = alone[name].ours, "".join(pieces)
    stride = min(stride, length - 1 - ours.tokenizer.fast.num_special_tokens_to_add(False))
    whole = ours(text, aggregation_strategy=strategy)
    read = ours(text, aggregation_strategy=strategy, stride=stride, max_length=length)
    assert [(one.label, one.start, one.end, one.index) for one in read] == [
        (one.label, one.start, one.end, one.index) for one in whole
    ]
    np.testing.assert_allclose([one.score for one in read], [one.score for one in whole], atol=1e-5)


LONG = " ".join(["the white whale is old and Ishmael asks the captain how long ago, who is in the ship"] * 6)


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", ["simple", "max"])
@pytest.mark.parametrize("name", ["wordpiece", "unigram"])
def test_a_long_text_in_windows_equals_the_pipeline_where_no_entity_is_longer_than_the_overlap(
    alone: dict[str, Case], name: str, strategy: str
) -> None:
    theirs = alone[name].pipeline(length=60, aggregation_strategy=strategy, stride=40)(LONG)
    ours = alone[name].ours(LONG, aggregation_strategy=strategy, stride=40, max_length=60)
    assert len(alone[name].ours.tokenizer.ids(LONG)) > 100 and len(ours) > 20
    same(ours, theirs, LONG)


def test_an_entity_longer_than_the_overlap_is_one_where_the_pipeline_loses_a_part(alone: dict[str, Case]) -> None:
    one = alone["wordpiece"]
    labels = {
        word: one.ours(word, aggregation_strategy="first", ignore_labels=[])[0].label for word in answers.WORDS
    }
    plain = {
        entity.word for word in answers.WORDS for entity in one.ours(word) if not entity.label.startswith("B-")
    }
    word = min(word for word in plain if labels.get(word, "O") != "O")
    text = " ".join([word] * 30)
    (ours,) = one.ours(text, aggregation_strategy="simple", stride=3, max_length=12)
    assert (ours.start, ours.end) == (0, len(text))
    theirs = one.pipeline(length=12, aggregation_strategy="simple", stride=3)(text)
    assert sum(part["end"] - part["start"] for part in theirs) < len(text) - 30


def test_where_windows_agree_the_best_score_counts_and_elsewhere_the_pipeline_is_equalled(
    cases: dict[str, Case],
) -> None:
    one = cases["wordpiece"]
    ours = {
        (entity.label, entity.start, entity.end): entity.score
        for entity in one.ours(LONG, aggregation_strategy="simple", stride=20)
    }
    theirs = {
        (entity["entity_group"], entity["start"], entity["end"]): entity["score"]
        for entity in one.pipeline(aggregation_strategy="simple", stride=20)(LONG)
    }
    shared = ours.keys() & theirs.keys()
    assert len(shared) > 0.6 * len(theirs)  # windows disagree: the weights are random
    assert [ours[key] for key in shared] == pytest.approx([theirs[key] for key in shared], abs=1e-5)


def test_letters_with_separate_accents_stay_in_their_own_word(ner: TokenClassification) -> None:
    text = "old e\u0301te\u0301 sea"
    entities = ner(text, aggregation_strategy="first", ignore_labels=[])
    encoding = ner.tokenizer.encode(text)
    found = words(tokens_of(text, encoding, word_aware=True, unknown=1))
    assert [(text[encoding.offsets[a + 1][0] : encoding.offsets[b + 1][1]]) for a, b in found] == [
        "old", "e\u0301te", "sea"
    ]  # fmt: skip
    assert "".join(one.word for one in entities).replace(" ", "") == text.replace(" ", "")


def test_a_long_text_is_refused_cut_or_read_in_windows(ner: TokenClassification, cases: dict[str, Case]) -> None:
    with pytest.raises(
        ContextLengthError, match="the model takes 40: pass stride= to read it in windows, or trunc"
    ):
        ner(LONG)
    same(ner(LONG, truncation=True), cases["wordpiece"].pipeline()(LONG), LONG)
    left = ner(LONG, truncation=True, truncation_side="left")
    assert left[-1].end > len(LONG) - 10
    assert max(one.end for one in ner(LONG, stride=5)) > len(LONG) - 10


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (None, {}, "expected a text or a list of texts, got NoneType"),
    ([None], {}, "expected text, got NoneType"),
    (["a", 5], {}, "expected text, got int"),
    (b"a", {}, "expected a text or a list of texts, got bytes"),
    ("\ud800", {}, "a lone surrogate"),
    (("a", "b"), {}, "token-classification reads one text, not a pair: give several texts as a list"),
    ("a", {"aggregation_strategy": "mean"}, "='mean': give none, simple, first, average or max"),
    ("a", {"aggregation_strategy": None}, "aggregation_strategy=None: give none, simple"),
    ("a", {"stride": -1}, "stride=-1: give a whole number of 0 or more"),
    ("a", {"stride": 2.5}, "stride=2.5: give a whole number"),
    ("a", {"stride": 38}, "stride=38: a window has 38 tokens of the text, and shares fewer of them"),
    ("a", {"stride": 2, "max_length": 2}, "stride=2: a window has 0 tokens of the text"),
    ("a", {"stride": 2, "truncation": True}, "stride reads all of a long text, truncation cuts it"),
    ("a", {"max_length": 41}, "max_length=41: the model takes 40 tokens"),
    ("a", {"ignore_labels": "O"}, "ignore_labels='O': give a list of labels"),
    ("a", {"ignore_labels": None}, "ignore_labels=None: give a list of labels"),
    ("a", {"ignore_labels": [["O"]]}, r"ignore_labels: \['O'\] is no label"),
    ("a", {"aggregation_strategy": np.array(["first", "max"])}, "aggregation_strategy=.*: give none, simple"),
    ("a", {"ignore_labels": ["PRE"]}, "ignore_labels: 'PRE' is no label .there are: O, B-PER, I-PER"),
    ("a", {"batch_size": 0}, "batch_size=0: give a whole number of 1 or more"),
]


@pytest.mark.parametrize(("texts", "options", "match"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_argument_is_named(ner: TokenClassification, texts: Any, options: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        ner(texts, **options)


def test_missing_or_wrong_labels_and_outputs_that_are_no_numbers_are_errors(
    ner: TokenClassification, copy_of: CopyOf
) -> None:
    bundle = copy_of(ner.bundle.path)
    tiny.change_json(bundle / "torchless.json", labels=["O", "PER"])
    with pytest.raises(BundleError, match=r"scores 6 labels, torchless\.json names 2: .*export it again"):
        torchless.load(bundle)("a")
    tiny.change_json(bundle / "torchless.json", labels=...)
    with pytest.raises(BundleError, match=r"the manifest names no labels: .*export it again"):
        torchless.load(bundle)
    tiny.change_json(bundle / "torchless.json", labels=list(LABELS))
    data = np.fromfile(bundle / "model.onnx.data", np.float32)
    np.full_like(data, np.nan).tofile(bundle / "model.onnx.data")
    with pytest.raises(GenerationError, match="logits are not numbers: the bundle is damaged"):
        torchless.load(bundle)("a")


def test_the_names_are_public_and_the_result_reads_well(ner: TokenClassification) -> None:
    assert torchless.Entity is Entity and torchless.TokenClassification is TokenClassification
    for first, second in itertools.pairwise(ner(TEXTS[0], ignore_labels=[])):
        assert first.start < second.start
        assert repr(first).startswith("Entity(label=")


def test_long_texts_cost_no_more_a_token_than_short_ones(
    ner: TokenClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Copied:
        """An encoding that counts its lists being copied."""

        copies = 0

        def __init__(self, encoding: Any) -> None:
            self.encoding = encoding

        def __getattr__(self, name: str) -> Any:
            Copied.copies += 1
            return getattr(self.encoding, name)

    encoding = ner.tokenizer.encode(LONG)
    for aware in (True, False):
        Copied.copies = 0
        found = tokens_of(LONG, Copied(encoding), word_aware=aware, unknown=1)  # type: ignore[arg-type]
        assert found == tokens_of(LONG, encoding, word_aware=aware, unknown=1) and Copied.copies < 6 < len(found)
    seen: list[tuple[list[range], list[set[int]]]] = []
    module = "torchless.tasks.token_classification"
    monkeypatch.setattr(
        f"{module}.seams", lambda windows, joined: seen.append((windows, joined)) or seams(windows, joined)
    )
    ner(LONG, stride=4, max_length=12)
    ((windows, joined),) = seen
    assert len(windows) > 9 and all(one <= set(window) for window, one in zip(windows, joined, strict=True))
