"""What `torchless bench` found, as plain records that go to JSON, CSV and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torchless.errors import InputError

VERSION = 1


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval, in the unit of what it measures; low <= high, both the value if exact."""

    value: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """For a difference: whether it is one, that is whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def away_from(self, neutral: float) -> bool:
        """Whether the interval leaves `neutral` out: 1 for a ratio."""
        return self.low > neutral or self.high < neutral


@dataclass(frozen=True)
class Metric:
    """One measure of quality.

    name: the key in Measured.quality, such as "accuracy". title: for people. better: "higher", "lower" or "" where
    neither is. percent: a share of 1 that people read times 100 (the values stay shares).
    """

    name: str
    title: str
    better: str = ""
    percent: bool = False


@dataclass(frozen=True)
class Latency:
    """Calls of `batch` texts of `length` tokens, or what `kind` says of a decoder ("prompt" or "decode").

    p50, p95: seconds a call (a token for "decode"). throughput: tokens a second. against: how many times as fast
    as the first bundle, from paired rounds; None for the first.
    """

    batch: int
    length: int
    p50: float
    p95: float
    throughput: float
    against: Interval | None = None
    kind: str = ""


@dataclass(frozen=True)
class Measured:
    """One bundle.

    bundle: its name, unique among the results. recipe: as in its manifest, "" for none. precision: of its graph,
    such as "fp32". size: bytes on disk. load: seconds of torchless.load and of reading the tokenizer; start: from
    the start of a process until it can answer, those among them; None if not measured. peak_memory: bytes of its
    process, None if not measured. quality: by the name of the metric. against: the same minus the first bundle's,
    paired by example; empty for the first. A metric that compares with the first bundle (agreement, KL) is in
    `quality` only, and not for the first. latencies: by batch and length.
    """

    bundle: str
    recipe: str
    precision: str
    size: int
    load: Interval | None = None
    start: Interval | None = None
    peak_memory: int | None = None
    quality: dict[str, Interval] = field(default_factory=dict)
    against: dict[str, Interval] = field(default_factory=dict)
    latencies: tuple[Latency, ...] = ()


@dataclass(frozen=True)
class Results:
    """All bundles on the same data and machine; the first is the reference.

    task: as in TASKS. data: the file's name, "" for none. examples: how many were scored. machine: facts for
    people, such as {"processor": ..., "threads": 2}. sensitivity: rows of the per-layer view, if measured. notes:
    sentences on what was cut, left out or too little.
    """

    task: str
    data: str
    examples: int
    machine: dict[str, Any]
    metrics: tuple[Metric, ...]
    bundles: tuple[Measured, ...]
    sensitivity: tuple[dict[str, Any], ...] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """What to_json wrote. InputError for anything else, and for the results of a later torchless."""
        try:
            read = json.loads(text)
            version = read.pop("version")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(
                "these are not the results of torchless bench: give the file that --json wrote"
            ) from None
        if version != VERSION:
            raise InputError(f"results of version {version!r}, this torchless reads {VERSION}: upgrade torchless")
        try:
            metrics = tuple(Metric(**one) for one in read.pop("metrics"))
            bundles = tuple(_measured(one) for one in read.pop("bundles"))
            sensitivity = read.pop("sensitivity")
            return cls(
                **{**read, "notes": tuple(read["notes"])},
                metrics=metrics,
                bundles=bundles,
                sensitivity=None if sensitivity is None else tuple(sensitivity),
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"results that torchless bench did not write ({error}): measure again") from None

    def rows(self) -> Iterator[dict[str, Any]]:
        """One flat row a bundle and measure, for CSV: value, low and high, and those of the comparison.

        `compared` is "difference" for quality and "ratio" for speed, "" for nothing to compare with.
        """
        for one in self.bundles:
            yield _row(one, "size", "bytes", value=one.size)
            for name, seconds in (("load", one.load), ("start", one.start)):
                if seconds is not None:
                    yield _row(one, name, "seconds", **dataclasses.asdict(seconds))
            if one.peak_memory is not None:
                yield _row(one, "peak_memory", "bytes", value=one.peak_memory)
            for metric in self.metrics:
                if metric.name in one.quality:
                    against = one.against.get(metric.name)
                    measured = dataclasses.asdict(one.quality[metric.name])
                    yield _row(one, metric.name, "", against=against, compared="difference", **measured)
            for speed in one.latencies:
                place: dict[str, Any] = {"kind": speed.kind, "batch": speed.batch, "length": speed.length}
                yield _row(one, "p50", "seconds", value=speed.p50, **place)
                yield _row(one, "p95", "seconds", value=speed.p95, **place)
                yield _row(
                    one,
                    "throughput",
                    "tokens/s",
                    against=speed.against,
                    compared="ratio",
                    value=speed.throughput,
                    **place,
                )


COLUMNS = (
    *("bundle", "recipe", "precision", "measure", "unit", "kind", "batch", "length"),
    *("value", "low", "high", "compared", "against", "against_low", "against_high"),
)


def _row(
    one: Measured, measure: str, unit: str, *, against: Interval | None = None, compared: str = "", **given: Any
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {
        "bundle": one.bundle,
        "recipe": one.recipe,
        "precision": one.precision,
    }
    row |= {"measure": measure, "unit": unit, **given}
    if against is not None:
        row |= {"compared": compared, "against": against.value}
        row |= {"against_low": against.low, "against_high": against.high}
    return row


def _interval(read: dict[str, float] | None) -> Interval | None:
    return None if read is None else Interval(**read)


def _measured(read: dict[str, Any]) -> Measured:
    latencies = tuple(Latency(**{**one, "against": _interval(one["against"])}) for one in read["latencies"])
    found = {name: {key: Interval(**one) for key, one in read[name].items()} for name in ("quality", "against")}
    times = {name: _interval(read[name]) for name in ("load", "start")}
    return Measured(**{**read, **found, **times, "latencies": latencies})
