"""95 % intervals: by the paired bootstrap for quality, of the median for speed.

R resamples, N examples. Every resample draws N examples with replacement, so it is a row of counts [N]; a measure
is a function of such counts. All models are given the same rows: a difference of two is paired by example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.quantize.results import Interval, Metric

Float = npt.NDArray[np.float64]

RESAMPLES = 2_000
TOGETHER = 1_000_000  # counts at a time: 8 MB
SEED = 0
TAIL = 2.5  # percent on either side
ENOUGH = 6  # examples or rounds: that all differ the same way is chance in 2 of 64 cases, in 2 of 32 for one less


@dataclass(frozen=True)
class Measure:
    """A metric of one model as a function of how often each of `examples` counts.

    of: float64 [R,N] -> [R]. value: by a library that is trusted with it, None for `of` each example once.
    """

    metric: Metric
    examples: int
    of: Callable[[Float], Float]
    value: float | None = None


def linear(metric: Metric, parts: Any, combine: Callable[[Float], Float], value: float | None = None) -> Measure:
    """A function of sums over the examples, such as F1 of counts. parts: [N,K]; combine: [R,K] -> [R]."""
    table = np.asarray(parts, np.float64)
    return Measure(metric, len(table), lambda counts: combine(counts @ table), value)


def mean(metric: Metric, sums: Any, weights: Any = None, value: float | None = None) -> Measure:
    """The mean of [N] numbers, or of what sums [N] add up over as many items as weights [N] say (0 for none)."""
    totals = np.asarray(sums, np.float64)
    counted = np.ones_like(totals) if weights is None else np.asarray(weights, np.float64)
    return linear(metric, np.stack([totals, counted], axis=1), lambda s: ratio(s[:, 0], s[:, 1]), value)


def ratio(above: Float, below: Float) -> Float:
    """above / below, 0 where both are 0."""
    return above / np.where(below == 0, 1, below)


def resamples(examples: int) -> Iterator[Float]:
    """The counts of RESAMPLES resamples in blocks [R,N], the same at each call."""
    generator = np.random.default_rng(SEED)
    rows = min(RESAMPLES, max(1, TOGETHER // examples))
    for start in range(0, RESAMPLES, rows):
        block = min(rows, RESAMPLES - start)
        yield generator.multinomial(examples, np.full(examples, 1 / examples), block).astype(np.float64)


def estimate(models: Sequence[Sequence[Measure]]) -> list[tuple[dict[str, Interval], dict[str, Interval]]]:
    """For each model's measures: value by metric, and its difference to the first model's, where that has it.

    The bounds are percentiles of the resamples, and hold the value itself: what takes absolute values, as the
    calibration error does, is larger in resamples. A share that is 0 or 1 in all examples is so in all resamples
    as well; its other bound is then 3 / N away (the rule of three: Hanley and Lippman-Hand, 1983). A difference of
    fewer than ENOUGH examples always reaches to 0.
    """
    resampled = _resample(models)
    found = []
    for number, measures in enumerate(models):
        quality, against = {}, {}
        for measure in measures:
            name = measure.metric.name
            value, drawn = resampled[number][name]
            quality[name] = _rule_of_three(measure, _percentiles(value, drawn))
            if number and name in resampled[0]:
                reference, before = resampled[0][name]
                against[name] = _percentiles(value - reference, drawn - before)
                if measure.examples < ENOUGH:
                    against[name] = undecided(against[name], 0.0)
        found.append((quality, against))
    return found


def _resample(models: Sequence[Sequence[Measure]]) -> list[dict[str, tuple[float, Float]]]:
    """By model and metric, the value and that of every resample [R]."""
    sizes = {measure.examples for measures in models for measure in measures}
    drawn: dict[tuple[int, str], list[Float]] = {}
    for size in sorted(sizes):
        for counts in resamples(size):
            for number, measures in enumerate(models):
                for measure in measures:
                    if measure.examples == size:
                        drawn.setdefault((number, measure.metric.name), []).append(measure.of(counts))
    return [
        {
            measure.metric.name: (_value(measure), np.concatenate(drawn[number, measure.metric.name]))
            for measure in measures
        }
        for number, measures in enumerate(models)
    ]


def _value(measure: Measure) -> float:
    if measure.value is not None:
        return float(measure.value)
    return float(measure.of(np.ones((1, measure.examples)))[0])


def _percentiles(value: float, drawn: Float) -> Interval:
    low, high = np.percentile(drawn, (TAIL, 100 - TAIL))
    return Interval(value, min(float(low), value), max(float(high), value))


def undecided(found: Interval, neutral: float) -> Interval:
    """It reaches to `neutral`: 0 for a difference, 1 for a ratio."""
    return Interval(found.value, min(found.low, neutral), max(found.high, neutral))


def _rule_of_three(measure: Measure, interval: Interval) -> Interval:
    if not measure.metric.percent or interval.low != interval.high:
        return interval
    room = min(1.0, 3 / measure.examples)
    if interval.value == 1:
        return Interval(1.0, 1 - room, 1.0)
    return Interval(0.0, 0.0, room) if interval.value == 0 else interval


def repeats(values: Sequence[float]) -> Interval:
    """The median of repeated measurements, such as ratios of paired rounds, and its interval from their order.

    The bounds are the values with as many below and above as the sign test allows, so no form of distribution is
    assumed. Of five and fewer even the smallest and the largest are less than 95 % sure: they are given then.
    """
    ordered = sorted(values)
    number = len(ordered)
    chances = np.cumsum([math.comb(number, k) for k in range((number + 1) // 2)]) / 2**number
    outside = max(int(np.count_nonzero(chances <= TAIL / 100)) - 1, 0)  # values left out on either side
    return Interval(float(np.median(ordered)), float(ordered[outside]), float(ordered[-1 - outside]))
