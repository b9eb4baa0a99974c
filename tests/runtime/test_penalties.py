"""What the text so far does to the next token: transformers' numbers, and its ids where nothing is drawn."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import torchless
from torchless import InputError, TextGeneration, penalties
from torchless.export import export
from torchless.generation_config import GenerationConfig
from torchless.sampling import make_sampler

VOCAB = 12
IDS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30)
WORDS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3), min_size=1)
LOGITS = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)
)


def processed(processor: Any, ids: list[int], logits: Any) -> Any:
    return processor(torch.tensor([ids]), torch.from_numpy(logits)[None])[0].numpy()


@settings(max_examples=150, deadline=None)
@given(ids=IDS, logits=LOGITS, penalty=st.sampled_from([0.5, 1.3, 2.0]), size=st.integers(1, 4))
def test_repetition_and_ngrams_are_treated_as_in_transformers(
    ids: list[int], logits: Any, penalty: float, size: int
) -> None:
    before, tokens = logits.copy(), np.array(ids)
    expected = processed(transformers.RepetitionPenaltyLogitsProcessor(penalty), ids, logits)
    np.testing.assert_array_equal(penalties.penalize_repetition(logits, tokens, penalty), expected)
    expected = processed(transformers.NoRepeatNGramLogitsProcessor(size), ids, logits)
    np.testing.assert_array_equal(penalties.forbid_repeated_ngrams(logits, tokens, size), expected)
    np.testing.assert_array_equal(logits, before)  # the model's buffer is not ours to change


@settings(max_examples=100, deadline=None)
@given(
    ids=IDS, logits=LOGITS, words=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3), min_size=1)
)
def test_bad_words_are_treated_as_in_transformers(ids: list[int], logits: Any, words: list[list[int]]) -> None:
    expected = processed(transformers.NoBadWordsLogitsProcessor(words), ids, logits)
    np.testing.assert_array_equal(penalties.forbid_sequences(logits, np.array(ids), words), expected)


def test_presence_and_frequency_count_only_what_was_added() -> None:
    logits = np.zeros(5, np.float32)
    result = penalties.penalize_counts(logits, np.array([1, 3, 3]), 0.5, 0.25)
    np.testing.assert_array_equal(result, [0, -0.75, 0, -1.0, 0])
    draw = make_sampler(GenerationConfig(presence_penalty=9.0), budget=4)
    logits = np.array([0, 5, 4], np.float32)
    assert draw(logits, np.array([1, 1]), 0) == 1  # the prompt's
    assert draw(logits, np.array([2, 1]), 1) == 2


CERTAIN: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[22], [273, 237], [237, 237, 14]]},
    {"min_new_tokens": 12, "eos_token_id": list(range(0, 320, 3))},
    {"forced_eos_token_id": 11},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": [[20]], "forced_eos_token_id": 5},
]


@pytest.mark.parametrize("chosen", CERTAIN, ids=str)
def test_greedy_ids_equal_those_of_transformers(
    gpt: TextGeneration, gpt_model: Any, chosen: dict[str, Any]
) -> None:
    options = {"max_new_tokens": 25, "do_sample": False, "eos_token_id": None} | chosen
    for text in ("The union", "people people people people"):
        ids = gpt.tokenizer.ids(text)
        expected = gpt_model.generate(torch.tensor([ids]), pad_token_id=0, **options)[0, len(ids) :].tolist()
        assert gpt(text, **options).token_ids == expected
    plain = [gpt(text, max_new_tokens=25, eos_token_id=None).token_ids for text in ("The union", "people people")]
    changed = [gpt(text, **options).token_ids for text in ("The union", "people people")]
    assert plain != changed


def test_logit_bias_equals_a_sequence_bias_of_one_token_and_forces_or_forbids(
    gpt: TextGeneration, gpt_model: Any
) -> None:
    ids = gpt.tokenizer.ids("The union")
    bias = {5: 4.0, 17: -3.5, 100: 2.5}
    expected = gpt_model.generate(
        torch.tensor([ids]), pad_token_id=0, eos_token_id=None, max_new_tokens=20, do_sample=False,
        sequence_bias={(token,): value for token, value in bias.items()},
    )[0, len(ids) :].tolist()  # fmt: skip
    assert gpt(ids, max_new_tokens=20, eos_token_id=None, logit_bias=bias).token_ids == expected
    assert set(gpt(ids, max_new_tokens=5, eos_token_id=None, logit_bias={9: 1000.0}).token_ids) == {9}


def test_the_first_and_last_tokens_can_be_forced(gpt: TextGeneration) -> None:
    done = gpt("The", max_new_tokens=6, eos_token_id=None, forced_bos_token_id=9, forced_eos_token_id=4)
    assert (done.token_ids[0], done.token_ids[-1]) == (9, 4)
    assert gpt("The", max_new_tokens=1, forced_bos_token_id=4, forced_eos_token_id=4).token_ids == [4]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"min_new_tokens": 9, "max_new_tokens": 3}, "min_new_tokens=9 and max_new_tokens=3 contradict each other"),
    ({"bad_words_ids": [[5]], "forced_eos_token_id": 5}, "forced_eos_token_id=5 is among bad_words_ids"),
    ({"bad_words_ids": [[]]}, "bad_words_ids holds an empty sequence"),
    ({"bad_words_ids": [5]}, "bad_words_ids=.*: give lists of token ids"),
    ({"bad_words_ids": "word"}, "bad_words_ids='w': give lists of token ids|bad_words_ids='word'"),
    ({"bad_words_ids": [[320]]}, "token ids must be from 0 to 319"),
    ({"logit_bias": {320: 1.0}}, "token ids must be from 0 to 319"),
    ({"logit_bias": {3: "x"}}, "logit_bias='x': give a mapping"),
    ({"logit_bias": {3: float("nan")}}, "logit_bias=nan: give a mapping"),
    ({"logit_bias": [3]}, r"logit_bias=\[3\]: give a mapping"),
    ({"repetition_penalty": 0}, "repetition_penalty=0: give above 0"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1: give 0"),
    ({"min_p": 1.5}, "min_p=1.5: give from 0 to 1"),
    ({"typical_p": 0}, "typical_p=0: give above 0"),
    ({"presence_penalty": float("inf")}, "presence_penalty=inf: give a number"),
    ({"bad_words_ids": [[i] for i in range(320)], "eos_token_id": None}, "leave no token to choose"),
]


@pytest.mark.parametrize(("chosen", "match"), WRONG, ids=lambda value: str(value)[:40])
def test_a_setting_that_is_wrong_or_contradicts_another_is_named(
    gpt: TextGeneration, chosen: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        gpt("The union", **chosen)


def test_a_setting_that_is_ignored_is_logged(
    gpt_checkpoint: Path, gpt: TextGeneration, copy_of: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="torchless"):
        gpt("The union", max_new_tokens=1, do_sample=False, temperature=0.5)
        assert "do_sample=False: temperature ignored" in caplog.text
        folder = copy_of(gpt_checkpoint)
        given = {"penalty_alpha": 0.6, "eta_cutoff": 0.0, "repetition_penalty": 1.5, "top_k": 3}
        (folder / "generation_config.json").write_text(json.dumps(given), encoding="utf-8")
        with torchless.load(export(folder, tmp_path / "out", check=False)) as model:
            assert (model.config.repetition_penalty, model.config.top_k) == (
                1.5,
                0,
            )  # no draw: top_k does not count
        assert "penalty_alpha: not implemented, ignored" in caplog.text and "eta_cutoff" not in caplog.text


@settings(max_examples=60, deadline=None)
@given(
    chosen=st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 3), "top_k": st.integers(0, 400), "top_p": st.floats(0.01, 1),
            "min_p": st.floats(0, 1), "typical_p": st.floats(0.01, 1), "seed": st.integers(0, 9),
            "repetition_penalty": st.floats(0.1, 3), "presence_penalty": st.floats(-3, 3),
            "frequency_penalty": st.floats(-3, 3), "no_repeat_ngram_size": st.integers(0, 4),
            "min_new_tokens": st.integers(0, 5),
            "logit_bias": st.dictionaries(st.integers(0, 319), st.floats(-9, 9)),
        },
    )
)  # fmt: skip
def test_any_settings_give_as_many_tokens_as_asked_for_alone_and_in_a_batch(
    gpt: TextGeneration, chosen: dict[str, Any]
) -> None:
    options = {"max_new_tokens": 5, "eos_token_id": None, "seed": 1} | chosen
    alone = gpt("The union", **options)
    assert len(alone.token_ids) == 5
    assert gpt(["people people", "The union"], **options)[1] == alone
