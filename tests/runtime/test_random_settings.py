"""Calls with random settings: each gives texts that keep to them, or names the setting that is wrong."""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import count
from typing import Any

import numpy as np
import pytest

from torchless import Generation, TextGeneration, TorchlessError
from torchless.generation_config import GenerationConfig
from torchless.state import State

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy's: an overflow, a division by zero

RUN = 1000  # calls that give a text; those that are refused come on top
VOCAB, CONTEXT = 320, 64  # of tiny.gpt2
PROMPTS = ["The union", "people people people", [5], [7, 9, 7, 9, 7], list(range(40, 85))]
TOO_LONG = list(range(CONTEXT + 6))
SET = threading.Event()
SET.set()
# What each setting may be, alone, with a short prompt ...
SOUND: dict[str, list[Any]] = {
    "max_new_tokens": [0, 1, 5, 12, 19, np.int32(7), None],
    "min_new_tokens": [0, 1, 4, 19, np.int64(3)],
    "eos_token_id": [None, 0, [], [3, 5], list(range(0, 320, 4)), np.array([9, 11]), np.int64(7), {1, 2}],
    "forced_bos_token_id": [None, 0, 17, 319],
    "forced_eos_token_id": [None, 0, 18, 319],
    "overflow": ["error", "slide"],
    "keep": [0, 1, 4, 40, 60],
    "stop_strings": [None, "e", ["un", "zz"], ("\N{REPLACEMENT CHARACTER}",), "\ud800", " ", ["e"] * 9],
    "max_time": [None, 0, 1e-4, 60, float("inf"), np.float32(30)],
    "logprobs": [None, 0, 1, 3, VOCAB + 5],
    "do_sample": [None, True, False, np.True_],
    "temperature": [0, 1e-6, 1e-4, 0.7, 1, 1e9, np.float32(1.5)],
    "top_k": [0, 1, 5, 10**30],
    "top_p": [1e-9, 0.5, 1, np.float64(0.9)],
    "min_p": [0, 0.1, 1],
    "typical_p": [1e-9, 0.5, 1],
    "seed": [None, 0, 7, 2**64],
    "num_beams": [1, 2, 5, 30],
    "length_penalty": [0, 1, -2.5, 3, 50, -50],
    "early_stopping": [True, False, "never"],
    "num_return_sequences": [1, 1, 2, 4],
    "repetition_penalty": [0.5, 1, 1.3, 1e-9, 1e9],
    "presence_penalty": [-2, 0, 1.5, 1e9, -1e9],
    "frequency_penalty": [-2, 0, 1.5, 1e9, -1e9],
    "no_repeat_ngram_size": [0, 1, 2, 3, 10**30],
    "bad_words_ids": [None, [], [[5]], [[20, 237], [237]], [(14,), [1, 2, 3]], np.array([[22], [23]])],
    "choices": [None, [" strong", " weak"], ("x",)],
    "regex": [None, "[a-z ]{2,8}", "(a|b)+"],
    "json_schema": [None, {"type": "integer"}, '{"enum": ["a", "b"]}'],
    "prompt_lookup_num_tokens": [None, 1, 4, 10**30],
    "max_matching_ngram_size": [1, 2, 5, 10**30],
    "num_assistant_tokens": [1, 5, 10**30],
    "logit_bias": [None, {}, {3: 5.0, 8: -2}, {20: float("-inf")}, {np.int64(9): np.float32(2)}, {319: 1e9}],
    "return_full_text": [True, False],
    "batch_size": [1, 2, 100],
    "state": [None, "own"],
    "assistant_model": [None, "itself"],
    "cancel": [None, threading.Event(), SET],
    "callback": [None, lambda ids: False, lambda ids: len(ids) == 3],
    "progress": [None, lambda read, total: read <= total],
}  # fmt: skip
# ... what it may not be ...
WRONG: dict[str, list[Any]] = {
    "max_new_tokens": [-1, CONTEXT + 1],
    "min_new_tokens": [-1, CONTEXT + 1, None],
    "eos_token_id": [-1, VOCAB, 10**30, [[1]], [None], {"a": 1}, {5: 1}, np.array(5.5), np.ones((2, 2)), True],
    "forced_bos_token_id": [-1, VOCAB, 10**30],
    "forced_eos_token_id": [-1, VOCAB, 10**30],
    "overflow": ["", "Slide", None],
    "keep": [-1, None],
    "stop_strings": [[""], "", [5], b"e", [None], {"a"}],
    "max_time": [-1, float("nan"), 10**400],
    "logprobs": [-1],
    "do_sample": [0, 1, "no"],
    "temperature": [-0.1, float("nan"), float("inf"), 10**400, 1e300, None, np.array([0.5]), np.array("x")],
    "top_k": [-1, 2.0, None],
    "top_p": [0, 1.1, -1, float("nan"), None],
    "min_p": [-0.1, 1.1, float("nan")],
    "typical_p": [0, 1.1, float("nan")],
    "seed": [-1, 1.5],
    "num_beams": [0, -1, VOCAB + 1, 10**30, None],
    "length_penalty": [float("nan"), float("inf"), 10**400, 1e300, -1e300, None],
    "early_stopping": ["soon", 1, None],
    "num_return_sequences": [0, -1, None],
    "repetition_penalty": [0, -1, float("nan"), 1e-300, 1e300, 10**400],
    "presence_penalty": [float("nan"), float("-inf"), 1e300, 10**400],
    "frequency_penalty": [float("nan"), float("inf"), -1e300, 10**400],
    "no_repeat_ngram_size": [-1, 1.5],
    "bad_words_ids": [[[]], [5], "word", 0, [[VOCAB]], [[-1]], [[10**30]], [[1.5]], [[[1]]], np.array([1, 2])],
    "choices": [[], "abc", [""], [5], {"a"}],
    "regex": ["(", "", 5, "a{1000000}"],
    "json_schema": ["", "[]", 5, {"type": "nothing"}, {1: object()}],
    "prompt_lookup_num_tokens": [0, -1],
    "max_matching_ngram_size": [0, None],
    "num_assistant_tokens": [0, None],
    "logit_bias": [[3], 0, {VOCAB: 1}, {-1: 1}, {10**30: 1}, {"a": 1}, {3: "x"}, {3: float("nan")},
                   {3: float("inf")}, {3: 10**400}, {3: 1e300}],
    "return_full_text": [None, "yes", 1],
    "batch_size": [0, -1, 1.5, None, True],
    "state": ["of another bundle", 5],
    "assistant_model": [5],
    "cancel": [5, True],
    "callback": [5, True],
    "progress": [5, True],
}  # fmt: skip
# ... and what hardly any may be.
ODD: list[Any] = [
    "",
    "x",
    b"x",
    1.5,
    (),
    [None],
    {"a": object()},
    object(),
    max,
    np.ones((2, 2)),
    np.array("x"),
    1j,
]
MADE: dict[str, Callable[[TextGeneration], Any]] = {  # what only a model can make
    "own": lambda gpt: gpt.state(),
    "of another bundle": lambda gpt: State("0" * 64, gpt.decoder.new_cache()),
    "itself": lambda gpt: gpt,
}


@dataclass
class Call:
    """A way to call the model, with some settings."""

    way: str
    prompts: list[Any]
    given: dict[str, Any]

    @classmethod
    def draw(cls, seed: int) -> Call:
        draw = random.Random(seed)
        way = draw.choice(["call", "call", "list", "stream", "chat"])
        prompts = (
            draw.sample(PROMPTS, draw.randint(2, 4)) if way == "list" else [draw.choice([*PROMPTS * 3, TOO_LONG])]
        )
        names = draw.sample(sorted(SOUND), draw.choice([0, 1, 1, 2, 2, 3, 3, 4, 6, 9]))
        given = {name: draw.choice(SOUND[name]) for name in names}
        if names and draw.random() < 0.25:
            given[names[0]] = draw.choice([*WRONG[names[0]], *ODD])
        return cls(way, prompts, given)

    def run(self, gpt: TextGeneration) -> list[Generation]:
        """Every text that it gives."""
        settings = {
            name: MADE[value](gpt) if isinstance(value, str) and value in MADE else value
            for name, value in self.given.items()
        }
        if self.way == "chat":
            return [gpt.chat([{"role": "user", "content": "The union"}], **settings)]
        if self.way == "stream":
            stream = gpt.stream(self.prompts[0], **settings)
            pieces = list(stream)
            assert stream.result is not None and "".join(pieces) == stream.result.text
            return [stream.result]
        made: Any = gpt(self.prompts, **settings) if self.way == "list" else [gpt(self.prompts[0], **settings)]
        return [one for several in made for one in several] if isinstance(made[0], list) else made

    def named(self, error: TorchlessError) -> list[str]:
        """Which of the settings an error names."""
        return [name for name in self.given if re.search(rf"\b{name}\b", str(error))]

    def check(self, gpt: TextGeneration, made: list[Generation]) -> None:
        """Every text keeps to the settings, whatever they are together."""
        config = gpt.config.override({name: value for name, value in self.given.items() if name in OF_CONFIG})
        several = config.num_return_sequences
        assert len(made) == several * len(self.prompts)
        for index, one in enumerate(made):
            if self.way == "chat":
                prompt = None
                assert one.token_ids == [] or one.text == one.text.lstrip()
            else:
                prompt = self.prompts[index // several]
            check_text(gpt, config, prompt, one, self.given)
            check_tokens(gpt, config, prompt, one)


def check_text(
    gpt: TextGeneration, config: GenerationConfig, prompt: Any, made: Generation, given: dict[str, Any]
) -> None:
    """The text is that of the tokens, without stop strings and in its form; the reason to end is a reason."""
    text = gpt.tokenizer.decode(made.token_ids)
    if given.get("return_full_text"):
        text = (prompt if isinstance(prompt, str) else gpt.tokenizer.decode(prompt)) + text
    if prompt is None:
        text = text.lstrip()
    assert text.startswith(made.text) if made.finish_reason == "stop_string" else text == made.text
    if not given.get("return_full_text"):
        assert not any(string in made.text for string in config.stop_strings)
    reasons = {
        "stop": bool(config.constraints) or (made.token_ids and made.token_ids[-1] in config.eos_token_id),
        "length": prompt is None or len(made.token_ids) == config.budget(made.prompt_tokens, CONTEXT),
        "stop_string": prompt is None or config.stop_strings,
        "callback": given.get("callback") is not None and given["callback"](made.token_ids),
        "deadline": config.max_time is not None and config.max_time < 1,
        "cancelled": given.get("cancel") is SET and made.token_ids == [],
    }
    assert reasons[made.finish_reason]
    if made.finish_reason == "stop" and prompt is not None and not given.get("return_full_text"):
        assert config.choices is None or made.text in config.choices
        assert config.regex is None or re.fullmatch(config.regex, made.text)
        assert config.json_schema is None or json.loads(made.text) in ("a", "b") or "enum" not in config.json_schema
    assert (made.speculation is None) == (
        config.prompt_lookup_num_tokens is None and given.get("assistant_model") is None
    )


def check_tokens(gpt: TextGeneration, config: GenerationConfig, prompt: Any, made: Generation) -> None:
    """The tokens are as many as they may be; none that is forbidden is there, and those that are forced are."""
    new = made.token_ids
    assert all(type(token) is int and 0 <= token < VOCAB for token in new)
    assert len(new) <= config.budget(made.prompt_tokens, CONTEXT)
    if config.logprobs is None:
        assert made.logprobs is made.top_logprobs is None
    else:
        assert made.logprobs is not None and made.top_logprobs is not None
        assert len(made.logprobs) == len(made.top_logprobs) == len(new) and max(made.logprobs, default=0.0) <= 0
        assert all(len(top) == min(config.logprobs, VOCAB) for top in made.top_logprobs)
    if prompt is None:
        return  # a conversation is another prompt, which may cut min_new_tokens
    ids = gpt.prompt_ids(prompt)
    assert len(ids) == made.prompt_tokens
    full = len(new) == config.budget(len(ids), CONTEXT)
    first, last = config.forced_bos_token_id, config.forced_eos_token_id
    assert not new or first is None or new[0] == first
    assert not new or not full or last is None or new[-1] == last
    free = [
        place
        for place in range(len(new))
        if (place > 0 or first is None) and (place + 1 < len(new) or last is None)
    ]
    banned = [one for one in config.bad_words_ids if len(one) > 1 or one[0] not in config.eos_token_id]
    for place in free:
        so_far = [*ids, *new[: place + 1]]
        assert place >= config.min_new_tokens or new[place] not in config.eos_token_id
        assert config.logit_bias.get(new[place]) != float("-inf")
        assert not any(so_far[-len(words) :] == list(words) for words in banned)
        size = config.no_repeat_ngram_size
        if 0 < size <= len(so_far):
            runs = [tuple(so_far[i : i + size]) for i in range(len(so_far) - size + 1)]
            assert runs[-1] not in runs[:-1]
    assert not any(token in config.eos_token_id for token in new[:-1])


OF_CONFIG = {one.name for one in fields(GenerationConfig)}


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn without a seed is the same in every run."""
    plain = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed=None: plain(0 if seed is None else seed))


def test_every_setting_and_every_argument_of_a_call_is_drawn() -> None:
    arguments = {*TextGeneration.__call__.__kwdefaults__, *TextGeneration.stream.__kwdefaults__}
    assert {*OF_CONFIG, *arguments} == set(SOUND) == set(WRONG)


def test_a_thousand_random_calls_keep_to_their_settings_and_others_name_what_is_wrong(gpt: TextGeneration) -> None:
    used, refused, done = Counter[str](), Counter[str](), 0
    for seed in count():
        call = Call.draw(seed)
        try:
            made = call.run(gpt)
        except TorchlessError as error:
            if not call.named(error):
                assert call.prompts == [TOO_LONG] and "the prompt has 70 tokens" in str(error), (seed, error)
            refused.update(call.named(error))
            continue
        call.check(gpt, made)
        used.update(list(call.given))
        done += 1
        if done == RUN:
            break
    assert set(used) == set(refused) == set(SOUND)
    assert gpt("The union", max_new_tokens=5).finish_reason == "length"  # the model is as it was


@pytest.mark.parametrize("name", SOUND)
def test_each_setting_alone_takes_what_it_may_be_and_is_named_where_it_may_not(
    gpt: TextGeneration, name: str
) -> None:
    for value in SOUND[name]:
        call = Call("call", ["The union"], {name: value})
        if name == "num_return_sequences" and value > 1:
            call.given["seed"] = 0
        call.check(gpt, call.run(gpt))
    for value in WRONG[name]:
        with pytest.raises(TorchlessError, match=rf"\b{name}\b"):
            Call("call", ["The union"], {name: value}).run(gpt)
    for value in ODD:
        try:
            Call("call", ["The union"], {name: value}).run(gpt)
        except TorchlessError as error:
            assert re.search(rf"\b{name}\b", str(error)), error
