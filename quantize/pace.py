"""How many times as fast as float32 bundles are, on this machine, in short rounds that take turns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import torchless
from torchless.quantize.sensitivity import Progress
from torchless.quantize.speed import STEPS, Shape, calls_of, rotated
from torchless.quantize.speed_process import TIMERS

LEAST_ROUNDS, MOST_ROUNDS = 3, 7
SECONDS = 10.0  # after which no further round begins
SLOWER = 0.97  # of float32's speed; what is nearer, no short run could tell

# What decides: one answer and several at once for an encoder, the next token for a decoder.
RANKED = {False: (Shape("text", 1, 128), Shape("text", 8, 128)), True: (Shape("decode", 1, 32),)}
# Where a quantized model might be slower than its float32: the corners of what is asked of a model.
CHECKED = {
    False: (Shape("text", 1, 8), Shape("text", 32, 8), Shape("text", 1, 512), Shape("text", 32, 32)),
    True: (
        *(Shape("prompt", 1, 8), Shape("prompt", 1, 128), Shape("prompt", 1, 512)),
        *(Shape("decode", 1, 8), Shape("decode", 32, 8)),
    ),
}

Ratios = dict[Shape, tuple[float, ...]]  # of each round


def race(source: Path, bundles: Sequence[Path], shapes: Sequence[Shape], progress: Progress) -> list[Ratios]:
    """For each bundle the speed over the source's, by shape and round. Lengths beyond the context are cut to it."""
    with contextlib.ExitStack() as stack:
        models = [stack.enter_context(torchless.load(path)) for path in (source, *bundles)]
        manifest = models[0].bundle.manifest
        generator = np.random.default_rng(0)
        fitting = cut(shapes, manifest.context_length)
        ids = {one: generator.integers(0, manifest.vocab_size, (one.batch, one.length)) for one in fitting}
        calls = {}
        for done, shape in enumerate(fitting):
            progress("warming up", done, len(fitting))
            calls[shape] = calls_of(
                shape, max(TIMERS[shape.kind](model.runner, ids[shape], 2)[1] for model in models)
            )
        rounds: list[dict[Shape, list[float]]] = []
        begin = time.perf_counter()
        while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() - begin < SECONDS):
            progress("timing", len(rounds), MOST_ROUNDS)
            took: dict[Shape, list[float]] = {shape: [0.0] * len(models) for shape in fitting}
            for shape in fitting:
                for i in rotated(len(models), len(rounds)):
                    seconds = TIMERS[shape.kind](models[i].runner, ids[shape], calls[shape])
                    took[shape][i] = float(np.median(seconds))
            rounds.append(took)
    return [
        {shape: tuple(took[shape][0] / took[shape][i] for took in rounds) for shape in fitting}
        for i in range(1, len(models))
    ]


def cut(shapes: Sequence[Shape], context: int) -> list[Shape]:
    """The shapes with lengths that fit the context, each once."""
    fitting: dict[Shape, None] = {}
    for shape in shapes:
        room = context - (STEPS + 1 if shape.kind == "decode" else 0)
        if room > 0:
            fitting[Shape(shape.kind, shape.batch, min(shape.length, room))] = None
    return list(fitting)


def mean_ratio(ratios: Ratios) -> float:
    """The geometric mean over the shapes of each one's median; 1 for none."""
    return float(np.exp(np.mean([np.log(np.median(one)) for one in ratios.values()]))) if ratios else 1.0


def slower(ratios: Ratios) -> dict[Shape, float]:
    """The shapes at which every round was slower than float32 and the median by more than chance, and that."""
    medians = {shape: float(np.median(one)) for shape, one in ratios.items() if max(one) < 1}
    return {shape: median for shape, median in medians.items() if median < SLOWER}
