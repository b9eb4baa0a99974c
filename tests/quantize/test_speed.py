"""Bundles timed beside each other: the work is what is said, ratios are paired, no process outlives a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchless
from torchless.cache import KVCache
from torchless.errors import TorchlessError
from torchless.quantize import speed, speed_process
from torchless.quantize.speed import BundleProcess, Shape, Speed, calls_of, cut, measure_speed, rotated

IDS = [5, 1, 4, 2, 9, 3, 7]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """Every process that the measurement starts."""
    processes: list[subprocess.Popen[str]] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    return processes


def instead(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a bundle's process run this Python instead."""
    monkeypatch.setattr(speed, "command", lambda bundle, threads: [sys.executable, "-c", script])


def test_two_bundles_are_started_timed_and_weighed(
    bert_bundles: dict[str, Path], started: list[subprocess.Popen[str]]
) -> None:
    shapes = [Shape("text", 2, 5), Shape("text", 1, 9)]
    steps: list[tuple[str, int, int]] = []
    bundle = bert_bundles["text-classification"]
    found = measure_speed(
        [bundle, bundle], [IDS, IDS], shapes, rounds=2, threads=1, progress=lambda *step: steps.append(step)
    )
    for one in found:
        assert len(one.starts) == len(one.loads) == 2
        assert all(0 < load < start for load, start in zip(one.loads, one.starts))
        assert one.peak_memory is None or 20e6 < one.peak_memory < 2e9
        assert list(one.rounds) == shapes and all(len(rounds) == 2 for rounds in one.rounds.values())
    assert len(started) == 6 and all(process.poll() is not None for process in started)
    first, second = (one.latencies(found[0]) for one in found)
    assert [(one.batch, one.length, one.kind, one.against) for one in first] == [(2, 5, "", None), (1, 9, "", None)]
    assert all(one.throughput == pytest.approx(one.batch * one.length / one.p50) for one in (*first, *second))
    assert all(one.p50 <= one.p95 for one in (*first, *second))
    assert all(one.against and one.against.low <= one.against.value <= one.against.high for one in second)
    assert steps[0] == ("starting", 0, 6) and steps[-1] == ("timing", 3, 4)


def test_a_decoder_is_timed_by_prompt_and_by_token(gpt_bundle: Path) -> None:
    shapes = [Shape("prompt", 2, 5), Shape("decode", 2, 5)]
    (found,) = measure_speed([gpt_bundle], [IDS], shapes, rounds=2, threads=1)
    prompt, decode = found.latencies(found)
    assert (prompt.kind, decode.kind) == ("prompt", "decode")
    assert prompt.throughput == pytest.approx(10 / prompt.p50) and decode.throughput == pytest.approx(
        2 / decode.p50
    )


def test_decoding_follows_the_prompt_greedily(
    gpt: torchless.TextGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gpt([5, 1, 4, 4], max_new_tokens=4, min_new_tokens=4).token_ids
    made: list[KVCache] = []
    fed: list[list[int]] = []
    plain, stepper = gpt.decoder.new_cache, gpt.decoder.stepper

    def new_cache(*given: Any, **named: Any) -> KVCache:
        made.append(plain(*given, **named))
        return made[-1]

    def listening(cache: KVCache) -> Any:
        step = stepper(cache)
        return lambda tokens: fed.append(list(tokens)) or step(tokens)  # type: ignore[func-returns-value]

    monkeypatch.setattr(gpt.decoder, "new_cache", new_cache)
    monkeypatch.setattr(gpt.decoder, "stepper", listening)
    assert len(speed_process.time_decode(gpt.decoder, np.array([[5, 1, 4], [2, 9, 3]]), 4)) == 4
    assert made[0].lengths.tolist() == [8, 8]  # the prompt, a step that binds, and four
    assert [tokens[0] for tokens in fed] == [4, *expected]
    assert len(speed_process.time_prompt(gpt.decoder, np.array([[5, 1, 4], [2, 9, 3]]), 2)) == 2
    assert [cache.lengths.tolist() for cache in made[1:]] == [[3, 3], [3, 3]]  # each call reads it anew


def test_an_encoder_gets_texts_of_exactly_this_length_without_padding() -> None:
    class Recorder:
        def run(self, *given: Any) -> None:
            self.given = given

    recorder, ids = Recorder(), np.array([[5, 1, 4], [2, 9, 3]])
    assert len(speed_process.time_text(recorder, ids, 3)) == 3  # type: ignore[arg-type]
    given, mask, types = recorder.given
    assert given.tolist() == ids.tolist() and mask.min() == 1 and types.max() == 0


def test_noise_that_hits_a_whole_round_leaves_the_ratio_alone() -> None:
    shape = Shape("text", 4, 10)
    first = Speed(rounds={shape: [[1.0, 1.0, 9.0], [8.0, 8.0, 8.0], [2.0, 2.0, 2.0]] * 2})
    other = Speed(rounds={shape: [[0.5, 0.5, 0.5], [4.0, 4.0, 4.0], [1.0, 1.0, 1.0]] * 2})
    (found,) = other.latencies(first)
    assert found.against is not None
    assert (found.against.value, found.against.low, found.against.high) == (2, 2, 2)
    assert found.p50 == 1 and found.p95 == 4 and found.throughput == 40


def test_rows_turns_and_calls() -> None:
    assert cut(IDS, Shape("text", 2, 5)) == [[5, 1, 4, 2, 9], [3, 7, 5, 1, 4]]
    assert [list(rotated(3, turn)) for turn in range(3)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    assert calls_of(Shape("text", 1, 8), 0.03) == 7  # 0.2 seconds
    assert calls_of(Shape("text", 1, 8), 5) == 1 and calls_of(Shape("text", 1, 8), 0) == 64
    assert calls_of(Shape("decode", 1, 8), 0) == 16
    assert Shape("prompt", 1, 64).fits(64) and not Shape("decode", 1, 64).fits(64)
    assert Shape("decode", 1, 47).fits(64) and not Shape("decode", 1, 48).fits(64)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; print('one\\noh no', file=sys.stderr); sys.exit(3)", "ended with exit code 3: oh no"),
        ("raise SystemExit(4)", r"exit code 4: it said nothing \(was it out of memory\?\)"),
    ],
)
def test_a_process_that_dies_is_named_with_its_last_words(
    script: str, message: str, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[str]]
) -> None:
    instead(monkeypatch, script)
    with pytest.raises(TorchlessError, match=message):
        BundleProcess(Path("some-bundle"), None)
    assert [process.poll() is None for process in started] == [False]


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no signals")
def test_a_process_that_was_killed_is_told_by_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(TorchlessError, match="some-bundle: its process ended with SIGKILL"):
        BundleProcess(Path("some-bundle"), None)


def test_a_process_that_hangs_is_ended(
    monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[str]]
) -> None:
    instead(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(speed, "PATIENCE", 0.3)
    with pytest.raises(TorchlessError, match=r"some-bundle: its process did not answer within 0\.3 seconds"):
        BundleProcess(Path("some-bundle"), None)
    assert started[0].poll() is not None


def test_what_the_bundle_cannot_do_is_said_in_its_own_words(gpt_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(TorchlessError, match=r"tokens do not fit the model's context of 64"):
        measure_speed([gpt_bundle], [IDS], [Shape("prompt", 1, 65)], rounds=2)
    with pytest.raises(TorchlessError, match="is not a folder"):
        measure_speed([tmp_path / "none"], [IDS], [Shape("prompt", 1, 6)], rounds=2)


def test_ctrl_c_leaves_no_process_behind(gpt_bundle: Path, started: list[subprocess.Popen[str]]) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "timing":
            assert sum(process.poll() is None for process in started) == 2  # those that are timed, and no others
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_speed([gpt_bundle] * 2, [IDS] * 2, [Shape("prompt", 1, 6)], rounds=2, progress=interrupt)
    assert len(started) == 6 and all(process.poll() is not None for process in started)


def test_the_process_holds_nothing_that_makes_bundles() -> None:
    code = (
        "import sys, torchless.quantize.speed_process; print({'onnx', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"  # their memory and start would count as the bundle's
