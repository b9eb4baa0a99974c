"""Which bundles are worth taking: those that no other beats in quality and in price at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torchless.quantize.results import Interval, Measured, Metric, Results


@dataclass(frozen=True)
class Point:
    """One bundle: its gain (smaller size, or higher speed: see `worth_taking`) against its quality.

    quality: as measured, in the metric's unit, with the interval of the paired difference to the first bundle
    around it where there is one, since the bundle's own says nothing about that. equal: the quality that it counts
    as, which is the first bundle's where no difference to that was found.
    """

    bundle: str
    gain: float
    quality: Interval
    equal: float


def headline(results: Results) -> Metric | None:
    """The measure that plots show: the first that has a better and a worse, and that every bundle was given.

    Where there is none, the first that compares with the first bundle; None without any.
    """
    judging = [metric for metric in results.metrics if metric.better]
    for others in (results.bundles, results.bundles[1:]):
        for metric in judging:
            if others and all(metric.name in one.quality for one in others):
                return metric
    return None


def quality_of(one: Measured, metric: Metric, first: Measured) -> tuple[Interval, float]:
    """The quality, and what it counts as. Compared with itself the first bundle is perfect: 1, or an error of 0."""
    perfect = 1.0 if metric.better == "higher" else 0.0
    own = one.quality.get(metric.name, Interval(perfect, perfect, perfect))
    against = one.against.get(metric.name)
    if against is None:
        return own, own.value
    reference = first.quality[metric.name].value
    paired = Interval(own.value, reference + against.low, reference + against.high)
    return paired, own.value if against.differs else reference


def points(results: Results, metric: Metric, gains: Sequence[float]) -> list[Point]:
    """One for each bundle; gains: how small or how fast it is, more is better."""
    first = results.bundles[0]
    found = [
        Point(one.bundle, gain, *quality_of(one, metric, first))
        for one, gain in zip(results.bundles, gains, strict=True)
    ]
    if any(metric.name in one.against for one in results.bundles):  # the others' intervals are to the first itself
        value = found[0].quality.value
        found[0] = replace(found[0], quality=Interval(value, value, value))
    return found


def worth_taking(candidates: Sequence[Point], metric: Metric) -> list[Point]:
    """Those that no other equals in both and beats in one, by gain."""
    sign = 1 if metric.better == "higher" else -1

    def beaten(one: Point) -> bool:
        return any(
            other.gain >= one.gain
            and sign * other.equal >= sign * one.equal
            and (other.gain > one.gain or sign * other.equal > sign * one.equal)
            for other in candidates
        )

    return sorted((one for one in candidates if not beaten(one)), key=lambda one: one.gain)


def mean_ratio(one: Measured, kind: str) -> tuple[float, float, float] | None:
    """How many times as fast as the first: geometric mean over the shapes of this kind, least and most of them.

    1 for the first itself; None where nothing of the kind was timed.
    """
    speeds = [speed for speed in one.latencies if speed.kind == kind]
    if not speeds:
        return None
    ratios = [1.0 if speed.against is None else speed.against.value for speed in speeds]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)), min(ratios), max(ratios)
