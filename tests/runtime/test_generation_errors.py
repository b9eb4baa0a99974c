"""What generation cannot do is said clearly, and a model that was interrupted answers as before."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import torchless
from torchless import ContextLengthError, GenerationError, InputError, TextGeneration
from torchless.decoder import Stepper

CopyOf = Callable[[Path], Path]


def test_a_prompt_past_the_context_is_refused_with_both_lengths(gpt: TextGeneration) -> None:
    with pytest.raises(ContextLengthError, match="the prompt has 65 tokens, the model's context is 64: shorten"):
        gpt([5] * 65)
    with pytest.raises(
        ContextLengthError, match=r"60 tokens .* max_new_tokens=5 do not fit .* 64: pass .*=4 or less"
    ):
        gpt([5] * 60, max_new_tokens=5)
    with pytest.raises(ContextLengthError, match="the prompt has 65 tokens"):
        gpt([[5], [5] * 65])
    with pytest.raises(ContextLengthError, match="the prompt has 65 tokens"):
        gpt.stream([5] * 65)  # at once, not with the first piece
    with pytest.raises(ContextLengthError, match="65 tokens do not fit the model's context of 64"):
        gpt.score([5] * 65)
    with pytest.raises(ContextLengthError, match="65 tokens do not fit"):
        gpt.next_tokens([5] * 65)
    assert len(gpt([5] * 60, max_new_tokens=4).token_ids) == 4


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": 5}, {"min_new_tokens": 1}, {"num_beams": 2, "max_new_tokens": 1}]
)
def test_a_prompt_that_fills_the_context_is_told_so(gpt: TextGeneration, settings: dict[str, Any]) -> None:
    told = "the prompt has 64 of the context's 64 tokens, nothing can follow: shorten it, or pass overflow='slide'"
    with pytest.raises(ContextLengthError, match=told):
        gpt([5] * 64, **settings)
    assert gpt([5] * 64, max_new_tokens=0).token_ids == []


def test_a_context_with_one_place_left_has_no_room_for_two_forced_tokens(gpt: TextGeneration) -> None:
    forced = {"forced_bos_token_id": 9, "forced_eos_token_id": 4}
    with pytest.raises(InputError, match="forced_bos_token_id=9 and forced_eos_token_id=4: there is room for one"):
        gpt([5] * 63, **forced)
    assert gpt([5] * 62, **forced).token_ids == [9, 4]
    assert gpt([5] * 64, **forced).token_ids == []


@pytest.mark.parametrize("prompt", ["", [[]], ["The union", ""], (), [[5], []]])
def test_an_empty_prompt_is_refused(gpt: TextGeneration, prompt: Any) -> None:
    if prompt == ():
        assert gpt(prompt) == []  # no prompts at all
        return
    with pytest.raises(InputError, match="the prompt is empty: give at least one token"):
        gpt(prompt)


@pytest.mark.parametrize(
    "prompt", [None, 5, 1.5, b"text", {"text": 1}, object(), [None], ["a", 5], [True, False], [1.5], {5}]
)
def test_what_is_no_prompt_is_named_by_its_type(gpt: TextGeneration, prompt: Any) -> None:
    for call in (gpt, gpt.stream, gpt.score, gpt.next_tokens):
        with pytest.raises(InputError, match=f"expected a prompt .* or a list .*, got {type(prompt).__name__}"):
            call(prompt)


@pytest.mark.parametrize(
    "prompt", [[320], [-1], [5, 10**30], [[5, 320]], [2**63], [[1], [[2]]], [[1, 2.5]], [["a"]]]
)
def test_ids_outside_the_vocabulary_are_refused(gpt: TextGeneration, prompt: Any) -> None:
    with pytest.raises(InputError, match=r"token ids (must be from 0 to 319|are a flat sequence of whole numbers)"):
        gpt(prompt)


def test_ids_of_several_shapes_in_one_prompt_are_refused(gpt: TextGeneration) -> None:
    with pytest.raises(InputError, match="token ids are a flat sequence of whole numbers"):
        gpt([[[1], [2, 3]]])
    with pytest.raises(InputError, match="token ids are a flat sequence of whole numbers"):
        gpt([np.ones((2, 3), np.int64).tolist()])


def test_a_lone_surrogate_is_refused_before_the_tokenizer_sees_it(gpt: TextGeneration) -> None:
    with pytest.raises(InputError, match="lone surrogate at character 3"):
        gpt("abc\udfff")


def test_one_prompt_is_wanted_where_one_text_comes_out(gpt: TextGeneration) -> None:
    with pytest.raises(InputError, match="stream takes one prompt: call the model for a list of them"):
        gpt.stream(["a", "b"])
    with pytest.raises(InputError, match="give one text, not a list of them"):
        gpt.score(["a", "b"])


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 5}, r"unknown setting max_tokens \(known: bad_words_ids, .*do_sample, .*max_new_tokens"),
    ({"max_new_tokens": -1}, "max_new_tokens=-1: give 0 or more or None"),
    ({"max_new_tokens": 1.5}, "max_new_tokens=1.5: give"),
    ({"max_new_tokens": True}, "max_new_tokens=True: give"),
    ({"temperature": -0.1}, "temperature=-0.1: give 0 or more"),
    ({"temperature": float("nan")}, "temperature=nan: give"),
    ({"temperature": float("inf")}, "temperature=inf: give"),
    ({"temperature": "1"}, "temperature='1': give"),
    ({"temperature": None}, "temperature=None: give"),
    ({"top_k": -1}, r"top_k=-1: give 0 \(all\) or more"),
    ({"top_k": 2.0}, "top_k=2.0: give"),
    ({"top_p": 0.0}, "top_p=0.0: give above 0, and 1 at most"),
    ({"top_p": 1.01}, "top_p=1.01: give"),
    ({"seed": -5}, "seed=-5: give 0 or more or None"),
    ({"seed": "x"}, "seed='x': give"),
    ({"do_sample": 1}, "do_sample=1: give True or False or None"),
    ({"eos_token_id": "x"}, "eos_token_id='x': give"),
    ({"eos_token_id": 1.5}, "eos_token_id=1.5: give"),
    ({"eos_token_id": [1.5]}, "eos_token_id="),
]


@pytest.mark.parametrize(("settings", "match"), BAD, ids=lambda value: str(value)[:40])
def test_a_setting_that_is_wrong_is_named(gpt: TextGeneration, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        gpt("The union", **settings)
    with pytest.raises(InputError, match=match):
        gpt.stream("The union", **settings)


@pytest.mark.parametrize("top", [0, -1, 1.5, True, None])
def test_a_number_of_next_tokens_below_one_is_refused(gpt: TextGeneration, top: Any) -> None:
    with pytest.raises(InputError, match=r"top=.*: give a whole number of 1 or more"):
        gpt.next_tokens("The union", top=top)


def test_logits_that_are_no_numbers_are_an_error(gpt_bundle: Path, copy_of: CopyOf) -> None:
    bundle = copy_of(gpt_bundle)
    data = np.fromfile(bundle / "model.onnx.data", np.float32)
    data[:32] = np.nan  # token 0 in the embedding, which is the head too
    data.tofile(bundle / "model.onnx.data")
    with torchless.load(bundle) as model:
        for call in (model, lambda text: list(model.stream(text)), lambda text: model([text, text])):
            with pytest.raises(GenerationError, match="logits are not numbers: the bundle is damaged, export it"):
                call("The union")
        with pytest.raises(GenerationError, match="logits are not numbers"):
            model.next_tokens("The union")
        with pytest.raises(GenerationError, match="logits are not numbers"):
            model.score("The union")


def test_a_stream_that_is_closed_midway_ends_and_leaves_the_model_usable(gpt: TextGeneration) -> None:
    before = gpt("The union", max_new_tokens=20)
    stream = gpt.stream("The union", max_new_tokens=20)
    next(stream)
    other = gpt.stream("A", max_new_tokens=20)
    next(other)
    stream.close()
    assert list(stream) == [] and stream.result is None
    assert gpt("The union", max_new_tokens=20) == before
    list(other)
    assert other.result == gpt("A", max_new_tokens=20)
    del stream, other


def test_ctrl_c_between_two_tokens_leaves_the_model_usable(
    gpt: TextGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = gpt(["The union", "A"], max_new_tokens=20)
    step, calls = Stepper.__call__, []

    def interrupted(self: Stepper, tokens: Any) -> Any:
        calls.append(tokens)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(self, tokens)

    monkeypatch.setattr(Stepper, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpt(["The union", "A"], max_new_tokens=20)
    assert gpt(["The union", "A"], max_new_tokens=20) == before


INTERRUPTED = """
import signal, sys, threading, torchless
model = torchless.load(sys.argv[1])
before = model("The union", max_new_tokens=30)
for _ in range(5):
    try:
        threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
        while True:
            model("The union", max_new_tokens=30)
    except KeyboardInterrupt:
        pass
    assert model("The union", max_new_tokens=30) == before
print("as before")
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_a_real_ctrl_c_leaves_the_model_usable(gpt_bundle: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(gpt_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=tiny.hear_ctrl_c)
    assert done.stdout == "as before\n", done.stderr
