"""Which settings contradict each other: these and no others, and the error names them."""

from __future__ import annotations

import logging
import re
import threading
from itertools import combinations, product
from typing import Any

import pytest

from torchless import TextGeneration, TorchlessError

# For each setting a value that does something, or what makes one of a model.
VALUES: dict[str, Any] = {
    "max_new_tokens": 5,
    "min_new_tokens": 6,
    "eos_token_id": [3, 5],
    "forced_bos_token_id": 17,
    "forced_eos_token_id": 18,
    "overflow": "slide",
    "keep": 2,
    "stop_strings": "e",
    "max_time": 60,
    "logprobs": 2,
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 9,
    "top_p": 0.9,
    "min_p": 0.1,
    "typical_p": 0.9,
    "seed": 1,
    "num_beams": 2,
    "length_penalty": 2.0,
    "early_stopping": True,
    "num_return_sequences": 3,
    "repetition_penalty": 1.3,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.0,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": [[17], [18]],
    "choices": [" strong", " a weak one"],
    "regex": "[a-z ]{8,9}",
    "json_schema": {"type": "string"},
    "prompt_lookup_num_tokens": 4,
    "max_matching_ngram_size": 3,
    "num_assistant_tokens": 3,
    "logit_bias": {9: 1.0, 17: float("-inf"), 18: float("-inf")},
    "return_full_text": True,
    "batch_size": 2,
    "cancel": threading.Event(),
    "callback": lambda ids: False,
    "progress": lambda read, total: None,
    "state": lambda gpt: gpt.state(),
    "assistant_model": lambda gpt: gpt,
}
OF_A_MODEL = ("state", "assistant_model")
FORMS = ("choices", "regex", "json_schema")
FORCED = ("forced_bos_token_id", "forced_eos_token_id")
GUESSES = ("prompt_lookup_num_tokens", "assistant_model")
WATCHED = ("stop_strings", "logprobs", "max_time", "cancel", "callback", "progress")
ONE_TEXT = (*FORMS, *GUESSES, *WATCHED, "overflow", "state")
PAIRS = [
    *product(["num_beams"], (*ONE_TEXT, "num_return_sequences")),  # they follow one text; more texts than beams
    *combinations(FORMS, 2),
    *product(FORMS, FORCED),
    *combinations((*GUESSES, "state"), 2),
    *product(GUESSES, ["overflow"]),
    *product(FORCED, ["bad_words_ids", "logit_bias"]),  # which take the forced tokens away
    ("state", "num_return_sequences"),
    ("min_new_tokens", "max_new_tokens"),
]
# A setting that a call has and another way to ask has not.
STREAM = ("num_beams", "num_return_sequences", "batch_size")
CHAT = (*STREAM, *GUESSES, "return_full_text")
# What contradicts each other by its value, the prompt's length or the vocabulary. Not all of it is to blame.
MORE: list[dict[str, Any]] = [
    {"num_return_sequences": 2, "do_sample": False},
    {"num_return_sequences": 2, "do_sample": True, "temperature": 0},
    {"forced_bos_token_id": 0, "min_new_tokens": 1},  # 0 ends a text
    {"forced_bos_token_id": 9, "forced_eos_token_id": 4, "max_new_tokens": 1},  # both in one place
    {"max_new_tokens": 63},  # 6 tokens of prompt in a context of 64
    {"min_new_tokens": 63},
    {"overflow": "slide", "keep": 61},
    {"bad_words_ids": [[token] for token in range(320)], "eos_token_id": None},
    {"logit_bias": {token: float("-inf") for token in range(320)}},
    {"min_new_tokens": 2, "eos_token_id": list(range(320))},
    {"no_repeat_ngram_size": 1, "logit_bias": {token: float("-inf") for token in range(3, 320)}, "eos_token_id": 9},
    {"choices": [" strong"], "bad_words_ids": [[token] for token in range(320)]},
    {"num_return_sequences": 2, "num_beams": 2, "forced_bos_token_id": 5, "max_new_tokens": 1},
    {"num_return_sequences": 2, "num_beams": 2, "logit_bias": {token: float("-inf") for token in range(1, 320)}},
]


def refused(ask: Any, gpt: TextGeneration, prompt: Any, names: tuple[str, ...], **given: Any) -> bool:
    """Whether a call with these settings is refused; the error then names all of them."""
    values = {name: VALUES[name](gpt) if name in OF_A_MODEL else VALUES[name] for name in names} | given
    try:
        ask(prompt, **values)
    except TorchlessError as error:
        assert all(re.search(rf"\b{name}\b", str(error)) for name in names), error
        return True
    return False


def test_these_pairs_of_settings_contradict_each_other_and_no_others(gpt: TextGeneration) -> None:
    usual = {"seed": 1, "max_new_tokens": 9}
    found = {
        frozenset(pair)
        for pair in combinations(VALUES, 2)
        if refused(gpt, gpt, "The union", pair, **{name: usual[name] for name in usual if name not in pair})
    }
    assert found == set(map(frozenset, PAIRS))


def test_a_stream_and_a_conversation_refuse_what_gives_several_texts_and_no_more(gpt: TextGeneration) -> None:
    told = [{"role": "user", "content": "The union"}]
    assert [name for name in VALUES if refused(gpt.stream, gpt, "The union", (name,), seed=1)] == [*STREAM]
    assert {name for name in VALUES if name != "seed" and refused(gpt.chat, gpt, told, (name,), seed=1)} == {*CHAT}


@pytest.mark.parametrize("given", MORE, ids=lambda given: " and ".join(given))
def test_settings_that_leave_no_text_are_named(gpt: TextGeneration, given: dict[str, Any]) -> None:
    with pytest.raises(TorchlessError) as raised:
        gpt("The union", **given)
    named = [name for name in given if re.search(rf"\b{name}\b", str(raised.value))]
    assert named and set(given) - set(named) <= {"eos_token_id", "overflow", "num_beams", "max_new_tokens"}


def test_the_number_of_an_assistants_tokens_without_one_is_told(
    gpt: TextGeneration, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"num_assistant_tokens": 3, "max_new_tokens": 2}
    with caplog.at_level(logging.WARNING, "torchless"):
        gpt("The union", assistant_model=gpt, **options)
        list(gpt.stream("The union", assistant_model=gpt, **options))
        assert caplog.messages == []
        gpt("The union", **options)
        gpt.stream("The union", **options)
        gpt.chat([{"role": "user", "content": "A"}], **options)
    assert caplog.messages == ["without assistant_model: num_assistant_tokens ignored"] * 3
