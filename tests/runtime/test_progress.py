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


def test_progress_has_to_be_a_function_and_does_not_follow_beams(long_gpt: TextGeneration) -> None:
    with pytest.raises(InputError, match="progress is a int: give a function of two counts"):
        long_gpt("A", progress=3)
    with pytest.raises(InputError, match="progress follow a text as it grows: not with num_beams"):
        long_gpt("A", num_beams=2, progress=print)
