"""Likelihoods of a GPT: windows over long texts, and choices, against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchless
from torchless import ContextLengthError, InputError, TextGeneration, likelihood
from torchless.export import export

LONG = " ".join(tiny.SENTENCES)
CHOICES = [" the union", " a prize", " its people are stronger.", ""]


def table_of(model: Any, ids: list[int]) -> Any:
    """Log-probabilities [S,V] after each of the ids."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def reference(model: Any, ids: list[int], context: int, stride: int) -> list[float]:
    """The perplexity guide of transformers: windows at 0, stride, 2 stride, ..., the new tokens of each scored."""
    scores: list[float] = []
    scored = 1
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        table = table_of(model, ids[begin:end])
        scores += [float(table[i - begin - 1, ids[i]]) for i in range(scored, end)]
        scored = end
        if end == len(ids):
            break
    return scores


@pytest.mark.parametrize("stride", [1, 17, 32, 63])
def test_a_long_text_is_scored_as_in_the_perplexity_guide(gpt: TextGeneration, gpt_model: Any, stride: int) -> None:
    ids = gpt.tokenizer.ids(LONG)
    assert len(ids) > 100
    score = gpt.score(LONG, stride=stride)
    expected = reference(gpt_model, ids, 64, stride)
    assert score.token_ids == ids[1:] and len(score.logprobs) == len(ids) - 1
    np.testing.assert_allclose(score.logprobs, expected, atol=1e-4)
    assert score.perplexity == pytest.approx(np.exp(-np.mean(expected)), rel=1e-4)
    assert gpt.score(ids, stride=stride).logprobs == score.logprobs


def test_a_text_that_fits_is_scored_at_once_whatever_the_stride(gpt: TextGeneration) -> None:
    for text in ("The union is strong", "a"):
        plain = gpt.score(text)
        assert gpt.score(text, stride=5) == plain
    with pytest.raises(
        ContextLengthError, match=r"\d+ tokens do not fit the model's context of 64: pass stride= .such as 32"
    ):
        gpt.score(LONG)


@pytest.mark.parametrize("stride", [0, -1, 1.5, True, "2", 64, 500])
def test_a_stride_out_of_range_is_refused(gpt: TextGeneration, stride: Any) -> None:
    with pytest.raises(
        InputError, match=r"stride=.*: give (a whole number of 1 or more|less than the context of 64)"
    ):
        gpt.score(LONG, stride=stride)


@given(length=st.integers(1, 300), context=st.integers(2, 40), data=st.data())
def test_windows_score_every_token_but_the_first_once_with_enough_before_it(
    length: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context - 1))
    scored: list[int] = []
    for begin, end, first in likelihood.windows(length, context, stride):
        assert end - begin <= context
        scored += range(first, end)
        assert all(i - begin >= min(i, context - stride) for i in range(first, end))
    assert scored == list(range(1, length))


def test_offsets_and_bytes_tell_where_the_surprise_is(gpt: TextGeneration) -> None:
    text = "Käse für 🎉 the union"
    score = gpt.score(text)
    encoding = tiny.bpe().encode(text)
    assert score.offsets == encoding.offsets[1:] and len(score.offsets) == len(score.logprobs)
    rest = len(text[encoding.offsets[0][1] :].encode())
    assert score.bits_per_byte == pytest.approx(-sum(score.logprobs) / np.log(2) / rest)
    ids = gpt.score(encoding.ids)
    assert (ids.offsets, ids.text_bytes) == ([], None) and np.isnan(ids.bits_per_byte)
    assert ids.logprobs == score.logprobs and np.isnan(gpt.score([5]).bits_per_byte)


@pytest.mark.parametrize("chunk", [2, 3, 256])
def test_chunks_do_not_change_a_score(gpt: TextGeneration, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    whole = gpt.score(LONG, stride=20).logprobs
    monkeypatch.setattr(likelihood, "CHUNK", chunk)
    np.testing.assert_allclose(gpt.score(LONG, stride=20).logprobs, whole, atol=1e-4)


@pytest.mark.parametrize("normalize", ["tokens", "bytes", "none"])
def test_a_choice_has_the_log_probability_of_torch(gpt: TextGeneration, gpt_model: Any, normalize: str) -> None:
    context, choices = "The future of the union is", CHOICES[:3]
    start = len(gpt.tokenizer.ids(context))
    expected, values = [], []
    for choice in choices:
        ids = gpt.tokenizer.ids(context + choice)
        assert ids[:start] == gpt.tokenizer.ids(context)
        table = table_of(gpt_model, ids)
        expected.append(sum(float(table[i - 1, ids[i]]) for i in range(start, len(ids))))
        values.append(expected[-1] / {"tokens": len(ids) - start, "bytes": len(choice), "none": 1}[normalize])
    mine = gpt.choose(context, choices, normalize=normalize)
    np.testing.assert_allclose(mine.logprobs, expected, atol=1e-3)
    np.testing.assert_allclose(mine.scores, torch.tensor(values).softmax(-1), atol=1e-3)
    assert (mine.index, mine.score) == (int(np.argmax(values)), max(mine.scores))


def test_lengths_decide_between_choices_only_where_they_are_asked_to(gpt: TextGeneration) -> None:
    choices = [" is", " is strong, and its people are stronger than it is"]
    summed, mean = (gpt.choose("The union", choices, normalize=way) for way in ("none", "tokens"))
    assert summed.index == 0 and summed.logprobs == mean.logprobs
    assert mean.scores != pytest.approx(summed.scores, abs=1e-3)


def test_a_space_may_belong_to_the_context_or_to_the_choice(gpt: TextGeneration) -> None:
    one = gpt.choose("The future of the", [" union", " prize"])
    other = gpt.choose("The future of the ", ["union", "prize"])
    assert other.logprobs == pytest.approx(one.logprobs, abs=1e-5)


def test_a_token_across_the_boundary_is_scored_for_every_choice(gpt: TextGeneration, gpt_model: Any) -> None:
    context, choices = "A.Th", ["e", " prize"]
    rows = [gpt.tokenizer.ids(context + choice) for choice in choices]
    shared = next(i for i, (a, b) in enumerate(zip(*rows, strict=False)) if a != b)
    assert shared < len(gpt.tokenizer.ids(context))  # "The" is one token, "Th" is two
    expected = []
    for ids in rows:
        table = table_of(gpt_model, ids)
        expected.append(sum(float(table[i - 1, ids[i]]) for i in range(shared, len(ids))))
    np.testing.assert_allclose(gpt.choose(context, choices).logprobs, expected, atol=1e-4)


def test_tokens_of_the_context_that_a_choice_changes_are_scored_with_it(
    gpt: TextGeneration, gpt_model: Any
) -> None:
    rows = [[5, 6, 7, 8, 9], [5, 6, 17, 18]]
    scores = likelihood.score_endings(gpt.decoder, [likelihood.Ending(ids, 3) for ids in rows])
    for ids, found in zip(rows, scores, strict=True):
        table = table_of(gpt_model, ids)
        np.testing.assert_allclose(found, [float(table[i - 1, ids[i]]) for i in range(2, len(ids))], atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    context=st.text("ab é🎉", min_size=1, max_size=12),
    choices=st.lists(st.text("ab é🎉.", min_size=1, max_size=8), min_size=1, max_size=4),
    data=st.data(),
)
def test_the_order_of_choices_and_their_number_change_no_log_probability(
    gpt: TextGeneration, context: str, choices: list[str], data: st.DataObject
) -> None:
    context = "The " + context + "!"  # ends with a token of its own, so that no choice moves the boundary
    choices = [f" {choice}" for choice in choices]
    mine = gpt.choose(context, choices)
    order = data.draw(st.permutations(range(len(choices))))
    assert mine.logprobs is not None
    for index, logprob in zip(order, gpt.choose(context, [choices[i] for i in order]).logprobs or [], strict=True):
        assert logprob == pytest.approx(mine.logprobs[index], abs=1e-4)
        alone = gpt.choose(context, [choices[index]])
        assert alone.logprobs == [pytest.approx(mine.logprobs[index], abs=1e-4)] and alone.scores == [1.0]
    assert mine.index == int(np.argmax(mine.scores)) and sum(mine.scores) == pytest.approx(1)


@pytest.mark.parametrize(
    ("context", "choices", "options", "match"),
    [
        ("The", [], {}, r"choices=\[\]: give a list of texts, at least one"),
        ("The", "ab", {}, "choices='ab': give a list of texts"),
        ("The", ["a", 5], {}, "expected text, got int"),
        (["The"], ["a"], {}, "expected text, got list"),
        ("The", [" a", ""], {}, "choice 1 is empty: give at least one token"),
        ("", ["a", "b"], {}, "the context has no token of its own"),
        ("The", ["a"], {"normalize": "words"}, "normalize='words': give tokens, bytes or none"),
    ],
    ids=str,
)
def test_wrong_use_of_choose_is_said(
    gpt: TextGeneration, context: Any, choices: Any, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        gpt.choose(context, choices, **options)


def test_a_context_that_leaves_no_room_for_a_choice_is_said(gpt: TextGeneration) -> None:
    context = gpt.tokenizer.decode(gpt.tokenizer.ids(LONG)[:60])
    with pytest.raises(ContextLengthError, match=r"the context with choice 1 has \d+ tokens, the model takes 64"):
        gpt.choose(context, [" a", " prize" * 20])


def test_the_context_is_read_once_for_all_choices(gpt: TextGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    extend = type(gpt.decoder).extend
    monkeypatch.setattr(
        type(gpt.decoder),
        "extend",
        lambda self, cache, ids, **k: lengths.append(len(ids)) or extend(self, cache, ids, **k),
    )
    context = "The future of the union is strong"
    gpt.choose(context, CHOICES[:3])
    assert lengths[0] == len(gpt.tokenizer.ids(context)) and sum(lengths) < lengths[0] + 40
    assert all(length < lengths[0] for length in lengths[1:])


def test_both_dialects_choose_alike(gpt_bundle: Any, gpt: TextGeneration) -> None:
    with torchless.load(gpt_bundle, dialect="standard") as standard:
        mine, other = (model.choose("The future of the", CHOICES[:3]) for model in (gpt, standard))
    assert other.logprobs == pytest.approx(mine.logprobs, abs=1e-4)


def test_a_gpt_with_two_heads_chooses_by_its_own(tmp_path: Any) -> None:
    import transformers
    from tokenizers import processors

    config = tiny.gpt2(num_labels=1).config
    config.summary_type = "cls_index"
    model = tiny.uneven(transformers.GPT2DoubleHeadsModel(config), 3)
    tokenizer = tiny.bpe()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tiny.END} $A {tiny.END}", pair=f"{tiny.END} $A ! $B {tiny.END}",
        special_tokens=[(tiny.END, 0), ("!", tokenizer.token_to_id("!"))],
    )  # fmt: skip
    choices = [" the union", " a prize for its people"]
    rows = [tokenizer.encode("The future", choice).ids for choice in choices]
    with torch.no_grad():
        logits = [float(model(torch.tensor([[ids]])).mc_logits) for ids in rows]
    with torchless.load(export(model, tmp_path / "out", tokenizer=tokenizer)) as ours:
        assert type(ours).__name__ == "MultipleChoice"
        mine = ours(context="The future", choices=choices)
    np.testing.assert_allclose(mine.scores, torch.tensor(logits).softmax(-1), atol=1e-5)
