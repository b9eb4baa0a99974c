"""How figures are written, the same in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torchless.quantize.results import Interval, Latency, Measured, Metric, Results

LONGEST_NAME = 28  # characters of a bundle's name in a table


@dataclass(frozen=True)
class Cell:
    """A figure, and a word where it differs from the first bundle's by more than chance.

    good: whether that is for the better, None for neither. detail: the difference, where there is room for it.
    """

    text: str = ""
    mark: str = ""
    good: bool | None = None
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.mark}".rstrip()


def title_of(results: Results) -> str:
    """Such as "text-classification on mails.jsonl, 400 examples"."""
    title = results.task + (f" on {results.data}" if results.data else "")
    if results.examples:
        what = "window" if results.task == "text-generation" else "example"
        title += f", {results.examples:,} {what}{'s' * (results.examples > 1)}"
    return title


def machine_of(results: Results) -> str:
    """The facts of the machine, on one line."""
    return ", ".join(
        f"{name} {value}" if name != "processor" else f"{value}" for name, value in results.machine.items()
    )


def number(value: float, digits: int = 4) -> str:
    """Digits that matter, without an exponent where people can do without: 1,234, 69.60, 0.001235."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = math.floor(math.log10(abs(value)))
    if size < -5:
        return f"{value:.{max(digits - 2, 1)}e}"
    return f"{value:,.{max(digits - 1 - size, 0)}f}"


def metric_cell(metric: Metric, one: Measured) -> Cell:
    """`96.50 ±1.75 worse`: the value, half the width of its interval, and a word where the difference is one.

    The whole width where the value is an end of it, such as 100 % of agreement.
    """
    if metric.name not in one.quality:
        return Cell()
    found = one.quality[metric.name]
    text = figure(metric, found.value)
    if found.high > found.low:
        margin = found.high - found.low
        if found.low < found.value < found.high:  # else all of it lies on one side
            margin /= 2
        text += f" ±{figure(metric, margin, 2)}"
    against = one.against.get(metric.name)
    if against is None:
        return Cell(text)
    value, low, high = (figure(metric, part, 3) for part in (against.value, against.low, against.high))
    detail = f"{'+' * (against.value > 0)}{value} ({low} to {high})".replace("-", "−")
    if not against.differs:
        return Cell(text, detail=detail)
    if not metric.better:
        return Cell(text, "differs", detail=detail)
    good = (against.value > 0) == (metric.better == "higher")
    return Cell(text, "better" if good else "worse", good, detail)


def figure(metric: Metric, value: float, digits: int = 4) -> str:
    """A value of this metric; those below 1 need a digit less."""
    return f"{value * 100:.2f}" if metric.percent else number(value, digits - (digits > 3 and abs(value) < 1))


def ratio_cell(ratio: Interval | None) -> Cell:
    """`1.59 (1.27 to 1.72) faster`: how many times as fast, its interval, and a word where that leaves 1 out."""
    if ratio is None:
        return Cell()
    text = f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    if not ratio.away_from(1):
        return Cell(text)
    return Cell(text, "faster" if ratio.value > 1 else "slower", ratio.value > 1)


def heading(metric: Metric) -> str:
    return f"{metric.title}, %" if metric.percent else metric.title


def shape_of(speed: Latency) -> str:
    """Such as "8 texts of 128 tokens" or "decoding 1 text after 16 tokens"."""
    texts = f"{speed.batch:,} text{'s' * (speed.batch > 1)}"
    if speed.kind == "decode":
        return f"decoding {texts} after {speed.length:,} tokens"
    if speed.kind == "prompt":
        return f"{speed.batch:,} prompt{'s' * (speed.batch > 1)} of {speed.length:,} tokens"
    return f"{texts} of {speed.length:,} tokens"


def short_names(results: Results) -> list[str]:
    """The bundles' names, long ones without their beginnings, unless two would then be the same."""
    names = [one.bundle for one in results.bundles]
    short = [name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}" for name in names]
    return short if len(set(short)) == len(names) else names


def overview(results: Results) -> tuple[list[str], list[list[Cell]]]:
    """Headings and a row a bundle: size, start, memory and quality; what was not measured has no column."""
    heads, columns = ["bundle"], [[Cell(name) for name in short_names(results)]]
    bundles = results.bundles

    def add(head: str, cells: Sequence[Cell]) -> None:
        if any(cell.text for cell in cells):
            heads.append(head)
            columns.append(list(cells))

    add("size, MB", [Cell(f"{one.size / 1e6:,.1f}") for one in bundles])
    add("start, s", [Cell(f"{one.start.value:.2f}" if one.start else "") for one in bundles])
    add("load, s", [Cell(f"{one.load.value:.2f}" if one.load else "") for one in bundles])
    add("memory, MB", [Cell(f"{one.peak_memory / 1e6:,.0f}" if one.peak_memory else "") for one in bundles])
    for metric in results.metrics:
        add(heading(metric), [metric_cell(metric, one) for one in bundles])
    return heads, [list(row) for row in zip(*columns, strict=True)]


def speeds(results: Results) -> tuple[list[str], list[list[Cell]]]:
    """Headings and a row for each bundle in each shape, which stands in its first row only."""
    heads = ["", "bundle", "p50, ms", "p95, ms", "tokens/s", "times as fast as the first"]
    rows = []
    for i in range(len(results.bundles[0].latencies)):
        for name, one in zip(short_names(results), results.bundles, strict=True):
            speed = one.latencies[i]
            figures = (number(speed.p50 * 1000, 3), number(speed.p95 * 1000, 3), f"{speed.throughput:,.0f}")
            shape = "" if one is not results.bundles[0] else shape_of(speed)
            rows.append([Cell(shape), Cell(name), *map(Cell, figures), ratio_cell(speed.against)])
    return (heads, rows) if len(results.bundles) > 1 else (heads[:-1], [row[:-1] for row in rows])
