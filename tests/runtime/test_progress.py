"""A long prompt is read in chunks: its reader is told how far it is, and may end it between two."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import torchless
from torchless import InputError, TextGeneration
from torchless.export import export
from torchless.generation import Row, Token, decode
from torchless.sampling import make_sampler
from torchless.stopping import FinishReason


@pytest.fixture(scope="module")
def long_gpt(tmp_path_factory: pytest.TempPathFactory) -> TextGeneration:
    out: Path = tmp_path_factory.mktemp("long") / "gpt"
    return torchless.load(export(tiny.gpt2(n_positions=1024), out, tokenizer=tiny.bpe(), check=False))


@pytest.mark.parametrize("how", ["call", "state", "chat", "lookup"])
def test_progress_counts_the_tokens_of_a_prompt_as_they_are_read(how: str, long_gpt: TextGeneration) -> None:
    told: list[tuple[int, int]] = []
    settings: dict[str, Any] = {"max_new_tokens": 2, "progress": lambda *counts: told.append(counts)}
    ids = np.random.default_rng(0).integers(0, 320, 700).tolist()
    if how == "chat":
        text = "The union of whales is strong. " * 30
        total = long_gpt.chat([{"role": "user", "content": text}], **settings).prompt_tokens
    else:
        state = long_gpt.state(ids[:300]) if how == "state" else None
        lookup = {"prompt_lookup_num_tokens": 3} if how == "lookup" else {}
        long_gpt(ids, state=state, **lookup, **settings)
        total = 700
    first = 556 if how == "state" else 256
    assert told == [(read, total) for read in [*range(first, total, 256), total]]


def test_progress_of_several_prompts_counts_them_all(long_gpt: TextGeneration) -> None:
    told: list[tuple[int, int]] = []
    long_gpt([[5] * 300, [6] * 10, [7] * 20], max_new_tokens=1, progress=lambda *counts: told.append(counts))
    assert told == [(256, 330), (300, 330), (310, 330), (330, 330)]


@pytest.mark.parametrize("how", ["call", "state", "lookup"])
def test_a_text_is_cancelled_within_a_chunk_of_its_prompt(how: str, long_gpt: TextGeneration) -> None:
    cancel, told = threading.Event(), []

    def progress(read: int, total: int) -> None:
        told.append(read)
        cancel.set()

    settings: dict[str, Any] = {
        "state": {"state": long_gpt.state()},
        "lookup": {"prompt_lookup_num_tokens": 3},
    }.get(how, {})
    done = long_gpt([5] * 700, max_new_tokens=5, cancel=cancel, progress=progress, **settings)
    assert told == [256] and done.finish_reason == "cancelled" and done.token_ids == []
    if how == "state":
        assert settings["state"].ids == [5] * 256  # and goes on from there


# Windows of a text that slides: the first 4 tokens and 510 of the newest, of which the next step takes the last.
SLIDE: dict[str, Any] = {"overflow": "slide", "max_new_tokens": 9, "eos_token_id": None}
IDS = np.random.default_rng(1).integers(0, 320, 1020).tolist()


@pytest.mark.parametrize("how", ["call", "batch", "state"])
def test_progress_counts_a_window_that_is_read_again(how: str, long_gpt: TextGeneration) -> None:
    told: list[tuple[int, int]] = []
    state = long_gpt.state() if how == "state" else None
    prompt = [IDS] if how == "batch" else IDS
    long_gpt(prompt, state=state, progress=lambda *counts: told.append(counts), **SLIDE)
    assert told == [(256, 1020), (512, 1020), (768, 1020), (1020, 1020), (260, 513), (513, 513)]


@pytest.mark.parametrize("reason", ["cancelled", "deadline"])
@pytest.mark.parametrize("how", ["call", "state"])
def test_a_text_that_slides_ends_within_a_chunk_of_its_window(
    how: str, reason: str, long_gpt: TextGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, told, now = threading.Event(), [], [0.0]
    monkeypatch.setattr("torchless.stopping.time.monotonic", lambda: now[0])

    def progress(read: int, total: int) -> None:
        told.append(read)
        if len(told) == 5:  # the first chunk of the second window
            now[0] = 99.0
            _ = cancel.set() if reason == "cancelled" else None

    plain = long_gpt(IDS, **SLIDE)
    text = long_gpt.tokenizer.decode(plain.token_ids[:5])
    options = {**SLIDE, "cancel": cancel, "progress": progress, "stop_strings": text[-1] + "zzz"}
    options |= {"state": long_gpt.state()} if how == "state" else {}
    stream = long_gpt.stream(IDS, max_time=99 if reason == "deadline" else None, **options)
    assert "".join(stream) == text and told == [256, 512, 768, 1020, 260]
    assert stream.result is not None and stream.result.text == text  # with what might have become a stop string
    assert (stream.result.token_ids, stream.result.finish_reason) == (plain.token_ids[:5], reason)
    if how == "state":
        window = [*IDS[:4], *[*IDS, *plain.token_ids[:5]][-510:-1]]
        assert options["state"].ids == window[:260]


def test_the_texts_beside_one_that_ends_in_its_window_go_on(long_gpt: TextGeneration) -> None:
    prompts = [IDS[:20], IDS, IDS[:1021], IDS[5:50]]
    rows = [Row(ids, 9, make_sampler(long_gpt.config, 9), keep=4) for ids in prompts]
    heard: list[int] = []

    def ends(token: Token | None) -> FinishReason | None:
        heard.append(0 if token is None else 1)
        return "cancelled" if token is None and 1 in heard else None  # within a window, not within the prompt

    rows[1].ends = ends
    made: list[list[int]] = [[] for _ in prompts]
    for token in decode(long_gpt.decoder, rows):
        made[token.prompt].append(token.id)
    alone = [long_gpt(ids, **SLIDE).token_ids for ids in prompts]
    assert made == [alone[0], alone[1][:5], *alone[2:]]


def test_progress_has_to_be_a_function_and_does_not_follow_beams(long_gpt: TextGeneration) -> None:
    with pytest.raises(InputError, match="progress is a int: give a function of two counts"):
        long_gpt("A", progress=3)
    with pytest.raises(InputError, match="progress follow a text as it grows: not with num_beams"):
        long_gpt("A", num_beams=2, progress=print)
