"""How fast bundles are beside each other: a process for each, asked in turn, round after round.

Each bundle has a process of its own, so that start and peak memory are its own, and noise of the machine hits all
alike: within a round all do the same work one after the other, and who begins changes from round to round. Ratios
are those of a round.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from torchless.errors import TorchlessError
from torchless.quantize.intervals import ENOUGH, repeats, undecided
from torchless.quantize.results import Interval, Latency

PATIENCE = 900  # seconds: a process that is silent for so long hangs
TURN = 0.2  # seconds that a bundle computes in its turn, or one call where that takes longer
MOST_CALLS = 64
STEPS = 16  # tokens that are decoded in a turn

Progress = Callable[[str, int, int], object]  # what is done, how much of it so far, of how much


@dataclass(frozen=True)
class Shape:
    """A batch of texts of one length. kind: "text" of an encoder; "prompt" or "decode" of a decoder."""

    kind: str
    batch: int
    length: int

    def fits(self, context: int) -> bool:
        """Whether a model with this context can do it; decoding goes on a few tokens after the prompt."""
        return self.length + (STEPS + 1 if self.kind == "decode" else 0) <= context


@dataclass
class Speed:
    """What was measured of one bundle.

    starts: seconds from the start of a process until it can answer. loads: those of torchless.load and the
    tokenizer among them. peak_memory: bytes. rounds: by shape, the seconds of each call of each round.
    """

    starts: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    rounds: dict[Shape, list[list[float]]] = field(default_factory=dict)

    def latencies(self, first: Speed) -> tuple[Latency, ...]:
        """By shape, with ratios to `first` (none of the first to itself)."""
        return tuple(_latency(shape, rounds, first.rounds[shape]) for shape, rounds in self.rounds.items())


class BundleProcess:
    """A bundle in a process of its own (speed_process.py). It idles between two questions, and takes no time."""

    def __init__(self, bundle: Path, threads: int | None) -> None:
        self.bundle = bundle
        begin = time.perf_counter()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        self._process = subprocess.Popen(
            command(bundle, threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONSAFEPATH": "1"},  # the folder that it is started in holds no module of ours
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        try:
            self.load = float(self._answer()["load"])
        except BaseException:
            self.close()
            raise
        self.start = time.perf_counter() - begin

    def ask(self, **question: Any) -> dict[str, Any]:
        """Raises TorchlessError for a process that ended, hangs, or could not."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: the missing answer says so
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):  # a question that nobody has read
                assert stream is not None
                stream.close()

    def __enter__(self) -> BundleProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _answer(self) -> dict[str, Any]:
        line = self._line()
        if line is None:
            raise TorchlessError(
                f"{self.bundle}: its process did not answer within {PATIENCE} seconds: choose smaller lengths and "
                "batches, or leave this bundle out"
            )
        if not line:
            code = self._process.wait()
            raise TorchlessError(f"{self.bundle}: its process ended with {_ending(code)}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise TorchlessError(f"{self.bundle}: {answer['error']}")
        return answer

    def _line(self) -> str | None:
        """None if there is none in time. Waits in pieces, since Ctrl-C on Windows does not end a wait."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                return self._lines.get(timeout=min(0.5, PATIENCE))
        return None

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:400] if lines else "it said nothing (was it out of memory?)"


def command(bundle: Path, threads: int | None) -> list[str]:
    more = [] if threads is None else [str(threads)]
    return [sys.executable, "-m", "torchless.quantize.speed_process", str(bundle), *more]


def measure_speed(
    bundles: Sequence[Path],
    ids: Sequence[Sequence[int]],
    shapes: Sequence[Shape],
    *,
    rounds: int,
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> list[Speed]:
    """Start, time and weigh each bundle; one Speed for each, in order.

    ids: for each bundle the token ids that rows are cut from, again from the beginning where there are too few.
    Raises TorchlessError for a bundle whose process fails; all processes are ended then, as after Ctrl-C.
    """
    found = [Speed() for _ in bundles]
    with contextlib.ExitStack() as stack:
        processes = _start(bundles, found, rounds, threads, progress, stack)
        rows = [{shape: cut(own, shape) for shape in shapes} for own in ids]
        calls = {}
        for done, shape in enumerate(shapes):
            progress("warming up", done, len(shapes))
            first = [
                process.ask(kind=shape.kind, rows=own[shape], calls=2) for process, own in zip(processes, rows)
            ]
            calls[shape] = calls_of(shape, max(one["seconds"][1] for one in first))
        for turn in range(rounds):
            for done, shape in enumerate(shapes):
                progress("timing", turn * len(shapes) + done, rounds * len(shapes))
                for i in rotated(len(processes), turn):
                    timed = processes[i].ask(kind=shape.kind, rows=rows[i][shape], calls=calls[shape])["seconds"]
                    found[i].rounds.setdefault(shape, []).append(timed)
        for speed, process in zip(found, processes, strict=True):
            speed.peak_memory = process.ask(kind="memory")["peak_memory"]
    return found


def _start(
    bundles: Sequence[Path],
    found: Sequence[Speed],
    rounds: int,
    threads: int | None,
    progress: Progress,
    stack: contextlib.ExitStack,
) -> list[BundleProcess]:
    """Start each bundle once in a round, and once before to have its files in the system's cache; the last stay."""
    processes: dict[int, BundleProcess] = {}
    for turn in range(rounds + 1):
        for done, i in enumerate(rotated(len(bundles), turn)):
            progress("starting", turn * len(bundles) + done, (rounds + 1) * len(bundles))
            process = BundleProcess(bundles[i], threads)
            if turn < rounds:
                process.close()
            else:
                processes[i] = stack.enter_context(process)
            if turn > 0:
                found[i].starts.append(process.start)
                found[i].loads.append(process.load)
    return [processes[i] for i in range(len(bundles))]


def rotated(count: int, turn: int) -> Iterator[int]:
    """0 to count - 1, beginning with another one in each turn."""
    return ((i + turn) % count for i in range(count))


def cut(ids: Sequence[int], shape: Shape) -> list[list[int]]:
    """B rows of L ids each, one after the other, from the beginning again where they end."""
    flat = np.resize(np.asarray(ids, np.int64), (shape.batch, shape.length))
    return [row.tolist() for row in flat]


def calls_of(shape: Shape, seconds: float) -> int:
    """How many calls a turn has, for one that takes so many seconds."""
    most = STEPS if shape.kind == "decode" else MOST_CALLS
    return min(max(math.ceil(TURN / max(seconds, 1e-9)), 1), most)


def _latency(shape: Shape, rounds: list[list[float]], first: list[list[float]]) -> Latency:
    """p50 and p95 are over all calls; the ratio is that of the medians of a round."""
    pooled = [seconds for one in rounds for seconds in one]
    p50, p95 = (float(value) for value in np.percentile(pooled, (50, 95)))
    tokens = shape.batch * (1 if shape.kind == "decode" else shape.length)
    against: Interval | None = None
    if rounds is not first:
        against = repeats([float(np.median(a) / np.median(b)) for a, b in zip(first, rounds, strict=True)])
        if len(rounds) < ENOUGH:
            against = undecided(against, 1.0)
    kind = "" if shape.kind == "text" else shape.kind
    return Latency(shape.batch, shape.length, p50, p95, tokens / p50, against, kind)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
