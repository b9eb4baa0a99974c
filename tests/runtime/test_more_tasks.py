"""Zero-shot, ranking, choosing, next sentences, targets, pairs both ways: what transformers and torch say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

import torchless
from torchless import (
    ContextLengthError,
    FillMask,
    GenerationError,
    InputError,
    MultipleChoice,
    NextSentencePrediction,
    TextClassification,
    TextRanking,
    ZeroShotClassification,
)
from torchless.export import export
from torchless.tasks.text_classification import Classification, classify

Open = Callable[..., Any]
WORDS = st.text("abc. 🎉", max_size=25) | st.sampled_from(tiny.SENTENCES[1:4])
NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}
LONG = "the union is strong and its people are stronger " * 8


def with_head(name: str, seed: int = 7, **config: Any) -> Any:
    """A tiny BERT with the head of another class."""
    small = tiny.bert("text-classification", **config).config
    return tiny.uneven(getattr(transformers, name)(small), seed)


def pipeline(task: str, model: Any, **options: Any) -> Any:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny.wordpiece(), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=40,
    )  # fmt: skip
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu", **options)


def logits_of(model: Any, *pair: str) -> Any:
    """What torch computes for a text or a pair alone."""
    encoding = tiny.wordpiece().encode(*pair)
    with torch.no_grad():
        return model(torch.tensor([encoding.ids]), token_type_ids=torch.tensor([encoding.type_ids])).logits[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Export a model and open it."""
    folder = tmp_path_factory.mktemp("tasks")
    opened = []

    def make(model: Any, task: str | None = None, tokenizer: Any = None) -> Any:
        out = export(model, folder / str(len(opened)), tokenizer=tokenizer or tiny.wordpiece())
        opened.append(torchless.load(out, task=task))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def nli_model() -> Any:
    return tiny.bert("text-classification", id2label=NLI, label2id={name: i for i, name in NLI.items()})


@pytest.fixture(scope="module")
def zero_shot(made: Open, nli_model: Any) -> ZeroShotClassification:
    model: ZeroShotClassification = made(nli_model, "zero-shot-classification")
    return model


@pytest.fixture(scope="module")
def ranking_model() -> Any:
    return tiny.bert("text-classification", num_labels=1)


@pytest.fixture(scope="module")
def ranking(made: Open, ranking_model: Any) -> TextRanking:
    model: TextRanking = made(ranking_model, "text-ranking")
    return model


@pytest.fixture(scope="module")
def choice_model() -> Any:
    return with_head("BertForMultipleChoice")


@pytest.fixture(scope="module")
def choosing(made: Open, choice_model: Any) -> MultipleChoice:
    model: MultipleChoice = made(choice_model)
    return model


@pytest.fixture(scope="module")
def next_model() -> Any:
    return with_head("BertForNextSentencePrediction")


@pytest.fixture(scope="module")
def following(made: Open, next_model: Any) -> NextSentencePrediction:
    model: NextSentencePrediction = made(next_model)
    return model


# Text classification


@pytest.mark.parametrize("top_k", [1, 2, 3, 9])
def test_the_best_labels_come_in_the_pipelines_order(
    classifier: TextClassification, bert_models: dict[str, Any], top_k: int
) -> None:
    theirs = pipeline("text-classification", bert_models["text-classification"], top_k=top_k)(tiny.SENTENCES)
    for mine, expected in zip(classifier(tiny.SENTENCES, top_k=top_k), theirs, strict=True):
        assert list(mine.scores) == [one["label"] for one in expected]
        np.testing.assert_allclose(list(mine.scores.values()), [one["score"] for one in expected], atol=1e-5)
        assert (mine.label, mine.score) == next(iter(mine.scores.items()))


def test_both_orders_add_the_logits_of_a_pair_and_of_its_reverse(
    classifier: TextClassification, bert_models: dict[str, Any]
) -> None:
    first, second = tiny.SENTENCES[:2]
    both = sum(logits_of(bert_models["text-classification"], *pair) for pair in ((first, second), (second, first)))
    mine = classifier((first, second), both_orders=True)
    np.testing.assert_allclose(list(mine.scores.values()), both.softmax(-1), atol=1e-5)
    turned = classifier([(second, first), ("a", "b")], both_orders=True)[0]
    assert turned.scores == pytest.approx(mine.scores, abs=1e-6)
    assert mine.scores != pytest.approx(classifier((first, second)).scores, abs=1e-3)
    with pytest.raises(InputError, match="both_orders=True is for pairs: give each as a tuple"):
        classifier(["a"], both_orders=True)


def test_both_orders_of_a_gpt_end_with_its_extract_token(made: Open) -> None:
    config = tiny.gpt2(num_labels=2).config
    model = tiny.uneven(transformers.GPT2ForSequenceClassification(config), 5)
    tokenizer = tiny.bpe()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {tiny.END}", pair=f"$A ! $B {tiny.END}",
        special_tokens=[(tiny.END, 0), ("!", tokenizer.token_to_id("!"))],
    )  # fmt: skip
    pair = ("The union", "a prize")
    with torch.no_grad():
        logits = [model(torch.tensor([tokenizer.encode(*texts).ids])).logits[0] for texts in (pair, pair[::-1])]
    ours = made(model, tokenizer=tokenizer)
    mine = ours([pair, ("a", "b")], both_orders=True)[0]
    np.testing.assert_allclose(list(mine.scores.values()), sum(logits).softmax(-1), atol=1e-5)


def test_several_labels_at_once_are_those_above_a_threshold() -> None:
    many = Classification("a", 0.9, {"a": 0.9, "b": 0.5, "c": 0.1})
    assert (many.above(), many.above(0.6), many.above(0), many.above(2)) == (["a", "b"], ["a"], ["a", "b", "c"], [])


def test_of_equal_labels_the_first_is_best() -> None:
    (one,) = classify(np.zeros((1, 3), np.float32), ["x", "y", "z"], lambda logits: logits, top_k=2)
    assert (one.label, list(one.scores)) == ("x", ["x", "y"])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("strategy", ["only_first", "only_second", "longest_first"])
def test_a_pair_is_cut_as_transformers_cuts_it(
    classifier: TextClassification, bert_models: dict[str, Any], strategy: str, side: str
) -> None:
    theirs = pipeline("text-classification", bert_models["text-classification"], top_k=None)
    theirs.tokenizer.truncation_side = side
    pair = {"only_first": (LONG, "a prize"), "only_second": ("a prize", LONG)}.get(strategy, (LONG, LONG[::-1]))
    expected = theirs(dict(zip(("text", "text_pair"), pair, strict=True)), truncation=strategy)
    mine = classifier(pair, truncation=strategy, truncation_side=side)
    assert mine.scores == pytest.approx({one["label"]: one["score"] for one in expected}, abs=1e-5)
    if strategy != "longest_first":
        with pytest.raises(
            ContextLengthError, match=f"truncation='{strategy}' leaves .* tokens whole, the model t"
        ):
            classifier(pair[::-1], truncation=strategy)


def test_a_pair_is_refused_where_the_template_has_none(made: Open) -> None:
    single = tiny.wordpiece()
    single.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    model = made(tiny.bert("text-classification"), tokenizer=single)
    assert model("a prize").label
    with pytest.raises(InputError, match="template has no form for a pair of texts: give one text"):
        model(("a", "b"))


# Zero-shot classification


@pytest.mark.parametrize(
    "options", [{}, {"multi_label": True}, {"hypothesis_template": "It is about {}!"}], ids=str
)
@pytest.mark.parametrize("labels", [["money", "the union", "a whale"], ["money"], "money, the union"], ids=str)
def test_zero_shot_scores_equal_those_of_the_pipeline(
    zero_shot: ZeroShotClassification, nli_model: Any, labels: Any, options: dict[str, Any]
) -> None:
    theirs = pipeline("zero-shot-classification", nli_model)
    texts = [*tiny.SENTENCES, LONG]  # the last is cut
    for mine, text in zip(zero_shot(texts, candidate_labels=labels, batch_size=5, **options), texts, strict=True):
        expected = theirs(text, candidate_labels=labels, **options)
        assert mine.scores == pytest.approx(
            dict(zip(expected["labels"], expected["scores"], strict=True)), abs=1e-5
        )
        assert mine.label == expected["labels"][0]
        best = zero_shot(text, candidate_labels=labels, top_k=2, **options)
        assert list(best.scores) == expected["labels"][:2]


@pytest.mark.parametrize(
    "labels",
    [{0: "ENTAILMENT", 1: "neutral", 2: "not"}, {0: "no", 1: "Entails"}, {0: "a", 1: "entail", 2: "c"}],
    ids=str,
)
def test_the_entailment_id_is_read_from_the_labels_as_the_pipeline_reads_it(
    made: Open, labels: dict[int, str]
) -> None:
    model = tiny.bert("text-classification", id2label=labels, label2id={name: i for i, name in labels.items()})
    mine = made(model, "zero-shot-classification")("the union", candidate_labels=["a", "b"], multi_label=True)
    expected = pipeline("zero-shot-classification", model)(
        "the union", candidate_labels=["a", "b"], multi_label=True
    )
    assert mine.scores == pytest.approx(dict(zip(expected["labels"], expected["scores"], strict=True)), abs=1e-5)


def test_a_head_that_knows_no_entailment_is_refused_with_its_labels(bert_bundles: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"needs a head for inference.*: this one has ham, spam, unsure"):
        torchless.load(bert_bundles["text-classification"], task="zero-shot-classification")
    with pytest.raises(InputError, match="text-ranking needs a head with one label, this one has ham, spam, uns"):
        torchless.load(bert_bundles["text-classification"], task="text-ranking")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"candidate_labels": []}, r"candidate_labels=\[\]: give a list of labels, at least one"),
        ({"candidate_labels": " , "}, "candidate_labels=' , ': give"),
        ({"candidate_labels": None}, "candidate_labels=None: give"),
        ({"candidate_labels": ["a", 5]}, "candidate_labels: expected text, got int"),
        ({}, "candidate_labels=None: give a list of labels"),
        ({"candidate_labels": ["{}"]}, "candidate_labels: '{}' leaves the template as it is: give a label of wo"),
        ({"candidate_labels": ["a"], "multi_label": "no"}, "multi_label='no': give True or False"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{[a]}"}, "write {} once where the label goes"),
        ({"candidate_labels": ["a", "b", "a"]}, "candidate_labels has 'a' twice"),
        (
            {"candidate_labels": ["a"], "hypothesis_template": "no place"},
            "hypothesis_template='no place': write {}",
        ),
        ({"candidate_labels": ["a"], "hypothesis_template": "{} {}"}, "write {} once where the label goes"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{x}"}, "write {} once where the label goes"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{"}, "write {} once where the label goes"),
        ({"candidate_labels": ["a"], "hypothesis_template": None}, "hypothesis_template: expected text, got None"),
        ({"candidate_labels": ["a"], "top_k": 0}, "top_k=0: give a whole number of 1 or more"),
        ({"candidate_labels": ["a"], "truncation": "yes"}, "truncation='yes': give"),
        ({"candidate_labels": [LONG]}, "truncation='only_first' leaves .* tokens whole, the model takes 40"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_wrong_use_of_zero_shot_is_said(
    zero_shot: ZeroShotClassification, options: dict[str, Any], match: str
) -> None:
    with pytest.raises((InputError, ContextLengthError), match=match):
        zero_shot("a", **options)


def test_zero_shot_takes_texts_only_and_no_texts_give_no_answers(zero_shot: ZeroShotClassification) -> None:
    assert zero_shot([], candidate_labels=["a"]) == []
    with pytest.raises(InputError, match="expected text, got tuple"):
        zero_shot(("a", "b"), candidate_labels=["a"])  # type: ignore[call-overload]
    with pytest.raises(ContextLengthError, match="pass truncation=True"):
        zero_shot(LONG, candidate_labels=["a"], truncation=False)


# Text ranking


def test_passages_are_ranked_as_a_cross_encoder_ranks_them(ranking: TextRanking, ranking_model: Any) -> None:
    logits = np.array([float(logits_of(ranking_model, "the union", passage)) for passage in tiny.SENTENCES])
    mine = ranking(query="the union", passages=tiny.SENTENCES, batch_size=4)
    assert [one.index for one in mine] == np.argsort(-logits).tolist()
    np.testing.assert_allclose([one.score for one in mine], 1 / (1 + np.exp(-np.sort(logits)[::-1])), atol=1e-5)
    raw = ranking(query="the union", passages=tiny.SENTENCES, function_to_apply="none", top_k=2)
    np.testing.assert_allclose([one.score for one in raw], np.sort(logits)[::-1][:2], atol=1e-4)
    assert ranking(query="the union", passages=[]) == []


def test_equal_passages_keep_their_order(ranking: TextRanking) -> None:
    mine = ranking(query="the union", passages=["a", "b", "a", "a"], batch_size=4)
    assert [one.index for one in mine if one.index != 1] == [0, 2, 3]


@pytest.mark.parametrize(
    ("fields", "raw"),
    [
        ({"activation_fn": "torch.nn.modules.linear.Identity", "__version__": {}}, True),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, True),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, True),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, False),
        ({"sentence_transformers": {"version": "4.0.1"}}, False),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_activation_of_a_cross_encoder_is_read_from_its_config(
    ranking_model: Any, fields: dict[str, Any], raw: bool, tmp_path: Path
) -> None:
    folder = tiny.save(ranking_model, tmp_path / "checkpoint", tiny.wordpiece())
    if "__version__" in fields:  # a file of its own in newer versions
        (folder / "config_sentence_transformers.json").write_text(json.dumps(fields))
    else:
        tiny.change_json(folder / "config.json", **fields)
    with torchless.load(export(folder, tmp_path / "out", check=False), task="text-ranking") as model:
        (one,) = model(query="a", passages=["b"])
    logit = float(logits_of(ranking_model, "a", "b"))
    assert one.score == pytest.approx(logit if raw else 1 / (1 + np.exp(-logit)), abs=1e-4)


def test_an_activation_that_is_not_known_is_refused(ranking_model: Any, tmp_path: Path) -> None:
    folder = tiny.save(ranking_model, tmp_path / "checkpoint", tiny.wordpiece())
    tiny.change_json(folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.Tanh"})
    out = export(folder, tmp_path / "out", check=False)
    with pytest.raises(torchless.BundleError, match=r"the activation 'torch\.nn\.Tanh' is not supported"):
        torchless.load(out, task="text-ranking")
    assert torchless.load(out)("a").score  # it still classifies


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"query": None}, "expected text, got NoneType"),
        ({"query": ["a"]}, "expected text, got list"),
        ({"passages": "b"}, "passages: expected a list of texts, got str"),
        ({"passages": [("b", "c")]}, "expected text, got tuple"),
        ({"top_k": 0}, "top_k=0: give a whole number of 1 or more"),
        ({"function_to_apply": "softmax"}, "of a single label it is always 1"),
        ({"function_to_apply": "tanh"}, "function_to_apply='tanh': give softmax, sigmoid or none"),
    ],
    ids=str,
)
def test_wrong_use_of_ranking_is_said(ranking: TextRanking, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        ranking(**{"query": "a", "passages": ["b"], **options})


# Multiple choice


@pytest.mark.parametrize("question", [None, "what is strong?"])
def test_choices_are_scored_as_torch_scores_them(
    choosing: MultipleChoice, choice_model: Any, question: str | None
) -> None:
    context, choices = "the union is strong", ["a prize", "its people", "call me Ishmael"]
    whole = context if question is None else f"{context} {question}"
    encodings = [tiny.wordpiece().encode(whole, choice) for choice in choices]
    longest = max(len(one.ids) for one in encodings)
    for one in encodings:
        one.pad(longest)
    with torch.no_grad():
        logits = choice_model(
            torch.tensor([[one.ids for one in encodings]]),
            attention_mask=torch.tensor([[one.attention_mask for one in encodings]]),
            token_type_ids=torch.tensor([[one.type_ids for one in encodings]]),
        ).logits[0]
    mine = choosing(context=context, choices=choices, question=question)
    np.testing.assert_allclose(mine.scores, logits.softmax(-1), atol=1e-5)
    assert (mine.index, mine.score) == (int(logits.argmax()), max(mine.scores))
    many = choosing(
        context=[context, "a"], choices=[choices, ["b"]], question=None if question is None else [question, "c"]
    )
    assert many[0].scores == pytest.approx(mine.scores, abs=1e-6) and many[1].scores == [1.0]
    assert choosing(context=[], choices=[]) == []


def test_cutting_a_context_leaves_question_and_choice_whole(
    choosing: MultipleChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    rows = choosing.rows
    monkeypatch.setattr(choosing, "rows", lambda encodings, *a: seen.extend(encodings) or rows(encodings, *a))
    context = "begin " + LONG + "end"
    for side, kept, lost in (("right", "begin", "end"), ("left", "end", "begin")):
        seen.clear()
        choosing(
            context=context, choices=["its people", "a"], question="what is strong", truncation=True,
            truncation_side=side,
        )  # fmt: skip
        for encoding, choice in zip(seen, ("its people", "a"), strict=True):
            first = encoding.ids[: encoding.ids.index(3)]
            text, tail = choosing.tokenizer.decode(first), choosing.tokenizer.decode(encoding.ids[len(first) :])
            assert 38 <= len(encoding.ids) <= 40
            assert text.startswith(kept) == (side == "right") and text.endswith("what is strong")
            assert (kept in text, lost in text, tail) == (True, False, choice)
    with pytest.raises(ContextLengthError, match="question and choice do not fit, shorten them"):
        choosing(context="a", choices=["b"], question=LONG, truncation=True)
    with pytest.raises(ContextLengthError, match="pass truncation=True"):
        choosing(context=LONG, choices=["b"], question="a")
    assert choosing(context=LONG, choices=["b", "c"], truncation=True).index in (0, 1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"choices": []}, r"choices=\[\]: give a list of texts, at least one"),
        ({"choices": "ab"}, "choices='ab': give a list"),
        ({"choices": ["a", None]}, "choices: expected text, got NoneType"),
        ({"choices": None}, "choices=None: give a list of texts"),
        ({"context": None}, "context: expected text, got NoneType"),
        ({"question": 5}, "question: expected text, got int"),
        ({"context": ["a", "b", "c"]}, "3 contexts need a list of as many choices, and questions if any"),
        ({"context": ["a"], "choices": [["b"]], "question": "c"}, "1 contexts need a list of as many choices"),
    ],
    ids=str,
)
def test_wrong_use_of_choosing_is_said(choosing: MultipleChoice, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        choosing(**{"context": "a", "choices": ["b", "c"], **options})


# Next sentence prediction


def test_next_sentences_equal_torch(following: NextSentencePrediction, next_model: Any) -> None:
    pairs = [(tiny.SENTENCES[i], tiny.SENTENCES[i + 1]) for i in range(3)]
    for mine, pair in zip(following(pairs), pairs, strict=True):
        expected = logits_of(next_model, *pair).softmax(-1).tolist()
        assert mine.scores == pytest.approx(dict(zip(("is_next", "random"), expected, strict=True)), abs=1e-5)
        assert following(pair).label == mine.label
    assert following([]) == []
    with pytest.raises(InputError, match="compares two texts: give each pair as a tuple"):
        following(["a"])  # type: ignore[list-item]


# Masked words


@pytest.mark.parametrize("text", ["the [MASK] is strong", "a [MASK] of my [MASK]"])
@pytest.mark.parametrize("targets", ["union", ["union", "people", "Prize"], ["union", "union", "##on"]], ids=str)
def test_targets_are_scored_as_the_pipeline_scores_them(
    fill_mask: FillMask, bert_models: dict[str, Any], text: str, targets: Any
) -> None:
    expected = pipeline("fill-mask", bert_models["fill-mask"])(text, targets=targets, top_k=2)
    ours = fill_mask([text], targets=targets, top_k=2)[0]
    several = text.count("[MASK]") > 1
    for mine, theirs in zip(ours if several else [ours], expected if several else [expected], strict=True):
        assert [one.token_id for one in mine] == [one["token"] for one in theirs]
        assert [one.sequence for one in mine] == [one["sequence"] for one in theirs]
        np.testing.assert_allclose([one.score for one in mine], [one["score"] for one in theirs], rtol=1e-3)


def test_a_target_of_several_tokens_is_refused_or_scored_over_as_many_masks(
    fill_mask: FillMask, bert_models: dict[str, Any]
) -> None:
    text, word = "the [MASK] is [MASK]", "unionship"
    ids = fill_mask.tokenizer.ids(word, special_tokens=False)
    assert len(ids) > 1
    with pytest.raises(
        InputError, match=rf"'unionship' is {len(ids)} tokens \('union', .*\): give a word of one t"
    ):
        fill_mask(text, targets=["union", word])
    found = fill_mask(text, targets=["union", word], multi_token="score")
    assert [{one.token for one in mask} for mask in found] == [{"union", word}] * 2
    for place, mask in enumerate(found):
        parts = text.split("[MASK]")
        row = parts[0] + "[MASK]" * (len(ids) if place == 0 else 1) + parts[1] + "[MASK]" * (
            len(ids) if place == 1 else 1
        )  # fmt: skip
        encoding = tiny.wordpiece().encode(row)
        masks = [i for i, token in enumerate(encoding.ids) if token == 4]
        places = masks[: len(ids)] if place == 0 else masks[-len(ids) :]
        table = logits_of(bert_models["fill-mask"], row).log_softmax(-1)
        expected = float(np.exp(np.mean([float(table[i, token]) for i, token in zip(places, ids, strict=True)])))
        (scored,) = [one for one in mask if one.token == word]
        assert scored.score == pytest.approx(expected, rel=1e-3)
        assert scored.token_ids == tuple(ids) and scored.token_id == ids[0] and word in scored.sequence
    (single,) = fill_mask("the [MASK] is", targets="union", multi_token="score")
    (plain,) = fill_mask("the [MASK] is", targets="union")
    assert single == plain


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"targets": []}, r"targets=\[\]: give a word or a list of words"),
        ({"targets": 5}, "targets=5: give a word or a list of words"),
        ({"targets": [5]}, "expected text, got int"),
        ({"targets": ["🎉"]}, "the target '🎉' is not in the vocabulary: give another word"),
        ({"targets": [""]}, "the target '' is not in the vocabulary"),
        ({"targets": "union", "multi_token": "first"}, "multi_token='first': give refuse or score"),
    ],
    ids=str,
)
def test_wrong_targets_are_said(fill_mask: FillMask, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        fill_mask("the [MASK]", **options)


def test_targets_that_no_longer_fit_are_said(fill_mask: FillMask) -> None:
    with pytest.raises(ContextLengthError, match="to have room for the targets"):
        fill_mask("the [MASK] " + "is " * 36, targets="precisely harvard", multi_token="score")


# What holds for all of them


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(WORDS, min_size=1, max_size=6), size=st.integers(1, 7), data=st.data())
def test_any_batch_in_any_order_gives_what_each_gives_alone(
    zero_shot: ZeroShotClassification, ranking: TextRanking, choosing: MultipleChoice,
    following: NextSentencePrediction, texts: list[str], size: int, data: st.DataObject,
) -> None:  # fmt: skip
    order = data.draw(st.permutations(range(len(texts))))
    shuffled = [texts[i] for i in order]
    labels = ["money", "a whale"]
    for index, mine in zip(order, zero_shot(shuffled, candidate_labels=labels, batch_size=size), strict=True):
        assert mine.scores == pytest.approx(zero_shot(texts[index], candidate_labels=labels).scores, abs=1e-5)
    pairs = [(text, "its people") for text in shuffled]
    for pair, next_one in zip(pairs, following(pairs, batch_size=size, truncation=True), strict=True):
        assert next_one.scores == pytest.approx(following(pair, truncation=True).scores, abs=1e-5)
    scores = {
        one.index: one.score for one in ranking(query="a", passages=shuffled, batch_size=size, truncation=True)
    }
    for place, text in enumerate(shuffled):
        (alone,) = ranking(query="a", passages=[text], truncation=True)
        assert scores[place] == pytest.approx(alone.score, abs=1e-5)
    choices = [shuffled, texts]
    many = choosing(context=["a", texts[0]], choices=choices, batch_size=size, truncation=True)
    for context, several, chosen in zip(["a", texts[0]], choices, many, strict=True):
        single = choosing(context=context, choices=several, truncation=True)
        assert chosen.scores == pytest.approx(single.scores, abs=1e-5)


def test_logits_that_are_no_numbers_are_an_error_in_every_task(
    ranking: TextRanking, zero_shot: ZeroShotClassification, choosing: MultipleChoice,
    following: NextSentencePrediction, copy_of: Callable[[Path], Path], tmp_path: Path,
) -> None:  # fmt: skip
    calls: list[tuple[Any, str, dict[str, Any]]] = [
        (ranking, "text-ranking", {"query": "a", "passages": ["b"]}),
        (zero_shot, "zero-shot-classification", {"texts": "a", "candidate_labels": ["b"]}),
        (choosing, "multiple-choice", {"context": "a", "choices": ["b"]}),
        (following, "next-sentence-prediction", {"pairs": ("a", "b")}),
    ]
    for model, task, given_ in calls:
        bundle = copy_of(model.bundle.path)
        data = np.fromfile(bundle / "model.onnx.data", np.float32)
        data[:] = np.nan
        data.tofile(bundle / "model.onnx.data")
        with torchless.load(bundle, task=task) as broken, pytest.raises(GenerationError, match="are not numbers"):
            broken(**given_)
