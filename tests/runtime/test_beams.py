"""Beam search: transformers' texts, id by id, and for draws its distribution."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchless import InputError, TextGeneration
from torchless.beams import beam_search
from torchless.generation_config import GenerationConfig

ENDS = list(range(0, 320, 9))  # so many that texts end at different lengths


def ours(gpt: TextGeneration, ids: list[int], **options: Any) -> list[list[int]]:
    config = GenerationConfig().override({"eos_token_id": ENDS} | options)
    return [beam.ids for beam in beam_search(gpt.decoder, ids, config, options["max_new_tokens"])]


def theirs(model: Any, ids: list[int], **options: Any) -> list[list[int]]:
    options = {"do_sample": False, "eos_token_id": ENDS, "pad_token_id": 319} | options
    given = torch.tensor([ids])
    rows = model.generate(given, attention_mask=torch.ones_like(given), **options)[:, len(ids) :].tolist()
    ends = np.atleast_1d(options["eos_token_id"] or []).tolist()
    return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in rows]


OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 5, "num_return_sequences": 5},
    {"num_beams": 3, "length_penalty": 0.0},
    {"num_beams": 4, "length_penalty": 2.0, "num_return_sequences": 3},
    {"num_beams": 4, "length_penalty": -1.5, "num_return_sequences": 2},
    {"num_beams": 3, "early_stopping": True, "num_return_sequences": 3},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 1.5},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": -0.5},
    {"num_beams": 4, "eos_token_id": None, "num_return_sequences": 4},
    {"num_beams": 4, "eos_token_id": 17},
    {"num_beams": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    {"num_beams": 3, "min_new_tokens": 8},
    {"num_beams": 3, "bad_words_ids": [[22], [273, 237]], "forced_eos_token_id": 9},
]


@pytest.mark.parametrize("chosen", OPTIONS, ids=str)
@pytest.mark.parametrize("text", ["The union", "A", "people people people"])
def test_beams_equal_those_of_transformers(
    gpt: TextGeneration, gpt_model: Any, text: str, chosen: dict[str, Any]
) -> None:
    ids = gpt.tokenizer.ids(text)
    for new in (1, 2, 14):
        chosen = chosen | {"max_new_tokens": new}
        if chosen.get("min_new_tokens", 0) <= new:
            assert ours(gpt, ids, **chosen) == theirs(gpt_model, ids, **chosen)


@settings(max_examples=25, deadline=None)
@given(
    ids=st.lists(st.integers(0, 319), min_size=1, max_size=12), beams=st.integers(2, 6), new=st.integers(1, 12),
    penalty=st.sampled_from([-1.0, 0.0, 0.7, 1.0, 3.0]), early=st.sampled_from([True, False, "never"]),
    ends=st.sets(st.integers(0, 319), max_size=40),
)  # fmt: skip
def test_any_search_equals_that_of_transformers(
    gpt: TextGeneration, gpt_model: Any, ids: list[int], beams: int, new: int, penalty: float, early: Any,
    ends: set[int],
) -> None:  # fmt: skip
    options = {
        "num_beams": beams, "max_new_tokens": new, "length_penalty": penalty, "early_stopping": early,
        "eos_token_id": sorted(ends) or None, "num_return_sequences": beams,
    }  # fmt: skip
    assert ours(gpt, ids, **options) == theirs(gpt_model, ids, **options)


def test_a_text_says_why_it_ended_and_how_likely_it_is(gpt: TextGeneration) -> None:
    ids = gpt.tokenizer.ids("The union")
    config = GenerationConfig(num_beams=4, num_return_sequences=4, eos_token_id=(237, 17), length_penalty=0.0)
    found = beam_search(gpt.decoder, ids, config, 14)
    for beam in found:
        assert (beam.ids[-1] in (237, 17)) == (beam.finish_reason == "stop")
        logprobs = gpt.score([*ids, *beam.ids]).logprobs[len(ids) - 1 :]
        assert beam.score == pytest.approx(sum(logprobs), abs=1e-3)
    assert [beam.score for beam in found] == sorted((beam.score for beam in found), reverse=True)
    assert beam_search(gpt.decoder, ids, config, 0)[0].ids == []


def test_drawn_beams_follow_the_distribution_of_transformers(gpt: TextGeneration, gpt_model: Any) -> None:
    ids = gpt.tokenizer.ids("The union")
    options = {"num_beams": 2, "max_new_tokens": 2, "do_sample": True, "top_k": 8, "temperature": 1.5,
               "eos_token_id": None, "num_return_sequences": 1}  # fmt: skip
    torch.manual_seed(0)
    count = 400
    rows = gpt_model.generate(torch.tensor([ids] * count), pad_token_id=0, **options)[:, len(ids) :].tolist()
    expected = Counter(map(tuple, rows))
    seen = Counter(tuple(ours(gpt, ids, seed=seed, **options)[0]) for seed in range(count))
    every = sorted(set(expected) | set(seen))
    one, other = (np.array([found[key] for key in every]) for found in (expected, seen))
    chi_square = ((one - other) ** 2 / (one + other)).sum()
    assert len(every) > 5
    assert chi_square < len(every) + 4 * (2 * len(every)) ** 0.5, (one, other)
    assert ours(gpt, ids, seed=3, **options) == ours(gpt, ids, seed=3, **options)


def test_more_beams_than_tokens_are_refused(gpt: TextGeneration) -> None:
    for beams, ends in ((321, None), (320, 5), (1000, None)):
        with pytest.raises(InputError, match=f"num_beams={beams:,}: the vocabulary has 320 tokens, give fewer"):
            gpt("The union", num_beams=beams, eos_token_id=ends, max_new_tokens=2)
