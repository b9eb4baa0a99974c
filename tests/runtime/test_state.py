"""A state changes what is computed, never the answer; past the context a window slides; a wrong file is named."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import pickle
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchless
from torchless import ContextLengthError, InputError, State, TextGeneration
from torchless.export import export

IDS = st.lists(st.integers(0, 319), min_size=1, max_size=30)


# What a state saves


@settings(max_examples=60, deadline=None)
@given(prompts=st.lists(IDS, min_size=2, max_size=4), shared=IDS, new=st.integers(0, 12))
def test_a_state_gives_what_each_prompt_gives_alone(
    gpt: TextGeneration, prompts: list[list[int]], shared: list[int], new: int
) -> None:
    state = gpt.state()
    for ids in [shared, *[shared + one for one in prompts], shared, *prompts]:
        done = gpt(ids, max_new_tokens=min(new, 64 - len(ids)), eos_token_id=None, state=state)
        assert done == gpt(ids, max_new_tokens=min(new, 64 - len(ids)), eos_token_id=None)
        if done.token_ids:
            assert state.ids == [*ids, *done.token_ids[:-1]]


@pytest.mark.parametrize("cut", [1, 7, 38, 39])
def test_logits_after_a_state_are_those_of_the_whole_prompt(gpt: TextGeneration, gpt_model: Any, cut: int) -> None:
    ids = np.random.default_rng(cut).integers(0, 320, 40).tolist()
    state = gpt.state(ids[:cut])
    logits = state.read(gpt.decoder, ids)
    whole = gpt.decoder.extend(gpt.decoder.new_cache(), ids)[-1]
    assert tiny.furthest(logits, whole) < 1e-5
    with torch.no_grad():
        expected = gpt_model(torch.tensor([ids])).logits[0, -1].numpy()
    assert tiny.furthest(logits, expected) < 1e-4


def test_only_what_is_new_is_read(gpt: TextGeneration, read: list[int]) -> None:
    ids = list(range(1, 41))
    state = gpt.state(ids[:30])
    done = gpt(ids, max_new_tokens=5, eos_token_id=None, state=state)
    assert read == [30, 10]
    gpt([*ids, *done.token_ids, 7], max_new_tokens=1, state=state)
    assert read == [30, 10, 2]  # the last token of the answer, which no step has read, and the 7
    gpt(ids, max_new_tokens=1, state=state)
    assert read == [30, 10, 2, 1]  # the last one again, for its logits
    gpt([9, *ids], max_new_tokens=1, state=state)
    assert read == [30, 10, 2, 1, 41]


@pytest.mark.parametrize("chosen", [{"temperature": 1.2, "seed": 3}, {"repetition_penalty": 1.3}, {"logprobs": 2}])
def test_settings_and_streams_do_the_same_with_a_state(gpt: TextGeneration, chosen: dict[str, Any]) -> None:
    options = {"max_new_tokens": 20, "eos_token_id": None, **chosen}
    plain = gpt("The union is", **options)
    state = gpt.state("The union")
    stream = gpt.stream("The union is", state=state, **options)
    assert "".join(stream) == plain.text and stream.result is not None
    assert stream.result.token_ids == plain.token_ids
    again = gpt("The union is", state=state, **options)
    assert again.token_ids == plain.token_ids
    if plain.logprobs:
        np.testing.assert_allclose(again.logprobs, plain.logprobs, atol=1e-4)


def test_a_fork_goes_its_own_way(gpt: TextGeneration) -> None:
    state = gpt.state("The union is")
    held, fork = state.ids, state.fork()
    other = gpt("The union of whales", max_new_tokens=9, state=fork)
    assert state.ids == held != fork.ids
    assert gpt("The union is", max_new_tokens=9, state=state) == gpt("The union is", max_new_tokens=9)
    assert gpt("The union of whales", max_new_tokens=9, state=fork) == other
    assert repr(gpt.state([5, 6])) == "State(2 tokens)" and len(gpt.state()) == 0


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_state_that_is_copied_or_pickled_names_fork_and_save(gpt: TextGeneration, make: Any) -> None:
    with pytest.raises(InputError, match=r"state\.fork\(\) copies a state, state\.save\(path\) keeps it"):
        make(gpt.state("The union"))


def test_a_state_of_an_interrupted_text_goes_on(gpt: TextGeneration) -> None:
    state, cancel = gpt.state(), threading.Event()
    stream = gpt.stream("The union", max_new_tokens=30, eos_token_id=None, state=state, cancel=cancel)
    next(stream)
    with pytest.raises(InputError, match=r"a stream that has not ended, uses this state: give it state.fork\(\)"):
        gpt("A", state=state)
    with pytest.raises(InputError, match="uses this state"):
        state.fork()
    stream.close()
    assert 0 < len(state.ids) < 20
    assert gpt("The union", max_new_tokens=9, state=state) == gpt("The union", max_new_tokens=9)
    cancel.set()
    held = state.ids
    assert gpt("A", state=state, cancel=cancel).finish_reason == "cancelled" and state.ids == held


@pytest.mark.parametrize(
    ("prompt", "options", "match"),
    [
        (["A", "B"], {}, "a state follows one text: give one prompt"),
        ("A", {"num_beams": 2}, "without num_beams"),
        ("A", {"num_return_sequences": 2, "seed": 1}, "without num_beams and num_return_sequences"),
        ("A", {"max_new_tokens": 100}, "do not fit the model's context"),
    ],
)
def test_what_no_state_can_do_is_refused_and_leaves_it(
    gpt: TextGeneration, prompt: Any, options: dict[str, Any], match: str
) -> None:
    state = gpt.state("The union")
    held = state.ids
    with pytest.raises((InputError, ContextLengthError), match=match):
        gpt(prompt, state=state, **options)
    assert state.ids == held


def test_a_state_belongs_to_its_bundle(gpt: TextGeneration, gpt_bundle: Path, tmp_path: Path) -> None:
    with torchless.load(export(tiny.gpt2(seed=8), tmp_path / "out", tokenizer=tiny.bpe(), check=False)) as other:
        for call in (other, other.stream):
            with pytest.raises(InputError, match="the state is of another bundle"):
                call("A", state=gpt.state("A"))
            with pytest.raises(InputError, match=r"state is a str: give what .state\(prompt\) returns"):
                call("A", state="A")
        gpt.state("A").save(tmp_path / "a.state")
        with pytest.raises(InputError, match="is of another bundle, whose graph or weights differ"):
            other.load_state(tmp_path / "a.state")
    with torchless.load(gpt_bundle) as same:
        assert same.load_state(tmp_path / "a.state").ids == gpt.state("A").ids


# Its file


@pytest.fixture
def saved(gpt: TextGeneration, tmp_path: Path) -> Path:
    gpt.state("The union is strong").save(tmp_path / "prompt.state")
    return tmp_path / "prompt.state"


def test_a_state_comes_back_from_its_file(gpt: TextGeneration, saved: Path, read: list[int]) -> None:
    state = gpt.load_state(saved)
    prompt = gpt.tokenizer.ids("The union is strong")
    assert state.ids == prompt and isinstance(state, State)
    plain = gpt([*prompt, 5, 6, 7], max_new_tokens=8)
    read.clear()
    assert gpt([*prompt, 5, 6, 7], max_new_tokens=8, state=state) == plain
    assert read == [3]
    state.save(saved)  # over the old one
    assert gpt.load_state(saved).ids == state.ids and len(list(saved.parent.iterdir())) == 1
    gpt.state().save(saved)
    assert gpt.load_state(saved).ids == []


def test_the_file_is_one_of_safetensors(gpt: TextGeneration, saved: Path) -> None:
    tensors = safetensors.numpy.load_file(saved)
    assert tensors["ids"].tolist() == gpt.tokenizer.ids("The union is strong")
    assert tensors["past"].shape == (2, 2, 4, len(tensors["ids"]), 8) and tensors["past"].dtype == np.float32


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    header, rest = header_of(content)
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def nan(content: bytes) -> bytes:
    return content[:-4] + np.float32(np.nan).tobytes()


def foreign_id(content: bytes) -> bytes:
    _, rest = header_of(content)
    return content[: -len(rest)] + np.int64(320).tobytes() + rest[8:]


BROKEN: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("empty", lambda c: b"", "is not a state: give a file that state.save"),
    ("text", lambda c: b"The union is strong, and its people", "is not a state: give a file"),
    ("short", lambda c: c[:-4], "is damaged, it has not its"),
    ("long", lambda c: c + b"\0", "is damaged, it has not its"),
    ("header cut", lambda c: c[:40], "is not a state: give a file"),
    ("huge header", lambda c: b"\xff" * 8 + c[8:], "is not a state: give a file"),
    ("deep header", lambda c: (60000).to_bytes(8, "little") + b"[" * 60000, "is not a state: give a file"),
    ("list", lambda c: (2).to_bytes(8, "little") + b"[]", "is not a state of this version"),
    ("format", lambda c: with_header(c, lambda h: h["__metadata__"].update(format="x")), "not a state of this ver"),
    ("no metadata", lambda c: with_header(c, lambda h: h.pop("__metadata__")), "not a state of this version"),
    ("bundle", lambda c: with_header(c, lambda h: h["__metadata__"].update(bundle="0" * 64)), "another bundle"),
    ("no ids", lambda c: with_header(c, lambda h: h.pop("ids")), "its number of tokens is None"),
    ("many", lambda c: with_header(c, lambda h: h["ids"].update(shape=[10**12])), "number of tokens is 10000000"),
    ("negative", lambda c: with_header(c, lambda h: h["ids"].update(shape=[-1])), "its number of tokens is -1"),
    ("boolean", lambda c: with_header(c, lambda h: h["ids"].update(shape=[True])), "number of tokens is True"),
    ("fewer", lambda c: with_header(c, lambda h: h["ids"].update(shape=[2])), "its tensors are not those"),
    ("shape", lambda c: with_header(c, lambda h: h["past"]["shape"].reverse()), "its tensors are not those"),
    ("places", lambda c: with_header(c, lambda h: h["past"].update(data_offsets=[0, 8])), "its tensors are not"),
    ("another", lambda c: with_header(c, lambda h: h.update(more=h["ids"])), "its tensors are not those"),
    ("id", foreign_id, "token ids must be from 0 to 319"),
    ("nan", nan, "it holds what is not a number"),
]


@pytest.mark.parametrize(("break_it", "match"), [one[1:] for one in BROKEN], ids=[one[0] for one in BROKEN])
def test_a_broken_or_hostile_file_is_an_error(
    gpt: TextGeneration, saved: Path, break_it: Callable[[bytes], bytes], match: str
) -> None:
    saved.write_bytes(break_it(saved.read_bytes()))
    with pytest.raises(InputError, match=match):
        gpt.load_state(saved)


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1), byte=st.integers(0, 255))
def test_a_byte_that_changes_is_seen_or_changes_a_number(gpt: TextGeneration, place: float, byte: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.state"
        gpt.state("The union").save(path)
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] = byte
        path.write_bytes(content)
        with contextlib.suppress(InputError):
            assert len(gpt.load_state(path)) == len(gpt.tokenizer.ids("The union"))


def test_files_that_cannot_be_read_or_written_are_named(gpt: TextGeneration, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is not a file: give one that state"):
            gpt.load_state(path)
    with pytest.raises(InputError, match="was not written"):
        gpt.state("A").save(tmp_path / "nowhere" / "a.state")
    assert list(tmp_path.iterdir()) == []


# Past the context


def slid(model: Any, ids: list[int], new: int, keep: int) -> list[int]:
    """Greedy ids by torch, which reads every window anew as a text of its own."""
    context, text, start = model.config.n_positions, list(ids), None
    for _ in range(new):
        held = len(text) if start is None else keep + len(text) - start
        if held > context:
            start = len(text) - (context - keep) // 2
        window = text if start is None else text[:keep] + text[start:]
        with torch.no_grad():
            text.append(int(model(torch.tensor([window])).logits[0, -1].argmax()))
    return text[len(ids) :]


@pytest.mark.parametrize("keep", [0, 1, 4, 60])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
def test_a_sliding_text_is_that_of_windows_read_from_scratch(
    gpt: TextGeneration, gpt_model: Any, keep: int, length: int
) -> None:
    ids = np.random.default_rng(length).integers(0, 320, length).tolist()
    options = {"overflow": "slide", "keep": keep, "max_new_tokens": 150, "eos_token_id": None}
    done = gpt(ids, **options)
    assert done.token_ids == slid(gpt_model, ids, 150, keep) and done.finish_reason == "length"
    state = gpt.state()
    assert gpt(ids, state=state, **options).token_ids == done.token_ids
    assert len(state.ids) <= 64 and state.ids[:keep] == (ids + done.token_ids)[:keep]
    assert gpt("The union", max_new_tokens=5, state=state) == gpt("The union", max_new_tokens=5)


def test_texts_of_a_batch_slide_each_at_its_own_time(gpt: TextGeneration) -> None:
    prompts = [np.random.default_rng(n).integers(0, 320, n).tolist() for n in (3, 40, 64, 70, 200)]
    for chosen in ({}, {"temperature": 1.3, "seed": 2}, {"repetition_penalty": 1.2}):
        options = {"overflow": "slide", "keep": 2, "max_new_tokens": 100, "eos_token_id": None, **chosen}
        assert gpt(prompts, batch_size=3, **options) == [gpt(one, **options) for one in prompts]


def test_a_window_is_read_in_large_steps(gpt: TextGeneration, read: list[int]) -> None:
    gpt([5] * 60, overflow="slide", keep=4, max_new_tokens=100, eos_token_id=None)
    assert read == [60, 29, 29, 29, 29]  # 30 newest at a time, of which the next step takes the last


def test_a_sliding_text_is_as_long_as_asked(gpt: TextGeneration) -> None:
    done = gpt("The union", overflow="slide", eos_token_id=None)
    assert (len(done.token_ids), done.finish_reason) == (128, "length")
    stream = gpt.stream("A", overflow="slide", max_new_tokens=10**15, eos_token_id=None)
    pieces = [next(stream) for _ in range(300)]
    stream.close()
    assert all(pieces)


def test_without_it_a_text_ends_with_the_context(gpt: TextGeneration) -> None:
    with pytest.raises(ContextLengthError, match="the prompt has 65 tokens"):
        gpt([5] * 65)
    assert len(gpt([5] * 60, eos_token_id=None).token_ids) == 4


def test_the_settings_of_a_window_are_checked(gpt: TextGeneration, caplog: pytest.LogCaptureFixture) -> None:
    for chosen, match in (
        ({"overflow": "wrap"}, "overflow='wrap': give 'error' or 'slide'"),
        ({"overflow": "slide", "keep": 61}, "keep=61: give 60 or less, the context is 64"),
        ({"overflow": "slide", "keep": -1}, "keep=-1: give 0 or more"),
        ({"overflow": "slide", "num_beams": 2}, "not with num_beams"),
    ):
        with pytest.raises(InputError, match=match):
            gpt("A", **chosen)
    with caplog.at_level(logging.WARNING, "torchless"):
        gpt("A", max_new_tokens=1, keep=3)
    assert "keep ignored" in caplog.text
