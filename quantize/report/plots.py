"""The plots of the page: quality against size and speed, time by length, what is sensitive."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torchless.errors import QuantizationError
from torchless.quantize.report.frontier import Point, headline, mean_ratio, points, worth_taking
from torchless.quantize.report.svg import CARD, FAINT, SERIES, for_page, render
from torchless.quantize.report.wording import heading, number, short_names
from torchless.quantize.results import Latency, Metric, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 3.0  # inches, without a legend
LINE = 58  # letters that fit beside each other
MOST_ROWS = 24  # of the sensitivity's bars
MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Plot:
    """title and caption: for people. svg: to be put into a page as it is; it tells its figures as text, too."""

    title: str
    caption: str
    svg: str


def check_matplotlib() -> None:
    """QuantizationError if it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise QuantizationError(
            f"the HTML report needs matplotlib: pip install 'torchless[quantize]' ({error})"
        ) from None


def plots(results: Results) -> list[Plot]:
    """Those that the results have figures for."""
    made = []
    metric = headline(results)
    if metric is not None:
        sizes = [one.size / 1e6 for one in results.bundles]
        made.append(_against_size(results, metric, sizes))
        made.extend(_against_speed(results, metric, kind) for kind in kinds(results) if len(results.bundles) > 1)
    made.extend(
        _by_length(results, kind, batch)
        for kind in kinds(results)
        for batch in dict.fromkeys(one.batch for one in results.bundles[0].latencies if one.kind == kind)
    )
    if results.sensitivity:
        made.append(_sensitivity(results.sensitivity))
    return made


def kinds(results: Results) -> list[str]:
    return list(dict.fromkeys(one.kind for one in results.bundles[0].latencies))


def _against_size(results: Results, metric: Metric, sizes: Sequence[float]) -> Plot:
    placed = points(results, metric, [-size for size in sizes])
    chosen = worth_taking(placed, metric)

    def draw(axes: Axes) -> None:
        _scatter(axes, results, metric, placed, chosen, sizes)
        axes.set_xlabel("size on disk, MB (smaller is better)")
        axes.set_xlim(left=0)

    facts = "; ".join(
        f"{point.bundle}: {number(size, 3)} MB, {_value(metric, point)}" for point, size in zip(placed, sizes)
    )
    title = f"{metric.title} against size"
    return _plot(title, _frontier(results, metric, chosen), facts, draw)


def _against_speed(results: Results, metric: Metric, kind: str) -> Plot:
    ratios = [mean_ratio(one, kind) or (1.0, 1.0, 1.0) for one in results.bundles]
    placed = points(results, metric, [mean for mean, _, _ in ratios])
    chosen = worth_taking(placed, metric)

    def draw(axes: Axes) -> None:
        for i, (point, (_, least, most)) in enumerate(zip(placed, ratios)):
            axes.plot([least, most], [_y(metric, point)] * 2, color=_colour(i), alpha=0.5, linewidth=4)
        _scatter(axes, results, metric, placed, chosen, [mean for mean, _, _ in ratios])
        axes.axvline(1, color=FAINT, linewidth=1, zorder=0)
        axes.set_xlabel("times as fast as the first (more is better)")

    doing = {"prompt": " of reading prompts", "decode": " of decoding"}.get(kind, "")
    facts = "; ".join(
        f"{point.bundle}: {mean:.2f} times as fast, {_value(metric, point)}"
        for point, (mean, _, _) in zip(placed, ratios)
    )
    caption = (
        "Speed is the geometric mean over all lengths and batches; the wide bar goes from the least to the most."
    )
    title = f"{metric.title} against speed{doing}"
    return _plot(title, f"{caption} {_frontier(results, metric, chosen)}", facts, draw)


def _by_length(results: Results, kind: str, batch: int) -> Plot:
    lines = [
        [speed for speed in one.latencies if (speed.kind, speed.batch) == (kind, batch)] for one in results.bundles
    ]
    texts = f"{batch:,} text{'s' * (batch > 1)}"
    title = {
        "prompt": f"Reading {batch:,} prompt{'s' * (batch > 1)}",
        "decode": f"Decoding {texts}, a step",
    }.get(kind, f"A call with {texts}")

    def draw(axes: Axes) -> None:
        for i, line in enumerate(lines):
            aside = 2 ** (0.06 * (i - (len(lines) - 1) / 2))  # or one line to p95 would hide another
            _line(axes, line, i, short_names(results)[i], aside)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", subs=())
        lengths = [speed.length for speed in lines[0]]
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.set_yticks(ticks := _ticks(*axes.get_ylim()), [f"{tick:g}" for tick in ticks])
        if len(lengths) == 1:
            axes.set_xlim(lengths[0] / 2, lengths[0] * 2)
        axes.set_xlabel("tokens before it" if kind == "decode" else "tokens of a text")
        _measure(axes, "milliseconds (less is better)")
        _legend(axes, short_names(results))

    facts = "; ".join(
        f"{one.bundle}: " + ", ".join(f"{number(s.p50 * 1000, 3)} ms at {s.length:,} tokens" for s in line)
        for one, line in zip(results.bundles, lines)
    )
    caption = "The median of all calls; the thin line goes up to the 95th percentile."
    return _plot(f"{title}, by length", caption, facts, draw)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers of a logarithmic axis, as many as can be read."""
    span = high / low
    digits = (1,) if span > 1000 else (1, 3) if span > 50 else (1, 2, 5) if span > 8 else (1, 1.5, 2, 3, 4, 5, 7)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for decade in decades for digit in digits if low <= (tick := digit * 10.0**decade) <= high]


def _line(axes: Axes, line: Sequence[Latency], i: int, name: str, aside: float) -> None:
    x, p50 = [speed.length * aside for speed in line], [speed.p50 * 1000 for speed in line]
    up = [max(speed.p95 - speed.p50, 0) * 1000 for speed in line]
    axes.errorbar(
        x, p50, yerr=[[0.0] * len(up), up], color=_colour(i), marker=_marker(i), label=name, linewidth=1.8,
        markersize=5, elinewidth=1, capsize=2,
    )  # fmt: skip


def _sensitivity(rows: Sequence[dict[str, Any]]) -> Plot:
    """Rows with `name` and `error`: what quantizing this part alone does to the output."""
    worst = sorted(rows, key=lambda row: -row["error"])[:MOST_ROWS]

    def draw(axes: Axes) -> None:
        axes.barh([row["name"] for row in worst], [row["error"] for row in worst], color=SERIES[0])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.locator_params(axis="x", nbins=3)  # small errors have long numbers
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("error of the output")  # the names leave little room

    shown = f"the {len(worst)} worst of {len(rows)} parts" if len(worst) < len(rows) else "all parts"
    caption = f"Each quantized alone, all else in float32: {shown}."
    facts = "; ".join(f"{row['name']}: {number(row['error'], 3)}" for row in worst[:5])
    return _plot("What is sensitive", caption, f"The worst: {facts}", draw, height=1 + 0.2 * len(worst))


def _scatter(
    axes: Axes,
    results: Results,
    metric: Metric,
    placed: Sequence[Point],
    chosen: Sequence[Point],
    x: Sequence[float],
) -> None:
    """A dot with its interval for each bundle; those worth taking are filled and joined."""
    scale = 100 if metric.percent else 1
    at = dict(zip((point.bundle for point in placed), x))
    joined = sorted((at[point.bundle], _y(metric, point)) for point in chosen)
    axes.plot([a for a, _ in joined], [b for _, b in joined], color=FAINT, linewidth=1.5, zorder=1)
    axes.axhline(_y(metric, placed[0]), color=FAINT, linewidth=1, zorder=0)
    for i, (point, name) in enumerate(zip(placed, short_names(results))):
        y, interval = _y(metric, point), point.quality
        margin = [[max(y - scale * interval.low, 0)], [max(scale * interval.high - y, 0)]]
        axes.errorbar(
            at[point.bundle], y, yerr=margin, color=_colour(i), marker=_marker(i), markersize=8, label=name,
            linestyle="none", elinewidth=1.2, capsize=3,
            markerfacecolor=_colour(i) if point in chosen else CARD,
        )  # fmt: skip
    better = "higher is better" if metric.better == "higher" else "lower is better"
    _measure(axes, f"{heading(metric)} ({better})")
    axes.margins(x=0.12, y=0.15)
    if metric.percent:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 100.5))
    _legend(axes, short_names(results))


def _measure(axes: Axes, text: str) -> None:
    """What the vertical axis shows, above it: on its side a long text would be cut off."""
    axes.set_title(textwrap.fill(text, LINE), loc="left", fontsize="medium")


def _legend(axes: Axes, names: Sequence[str]) -> None:
    """Above the axes, where it hides nothing, in as many columns as the longest name leaves; the figure grows."""
    columns = max(1, min(len(names), LINE // (max(map(len, names)) + 5)))
    figure = cast("Figure", axes.get_figure())
    figure.set_figheight(HEIGHT + 0.2 * math.ceil(len(names) / columns))
    figure.legend(loc="outside upper left", ncols=columns, columnspacing=1.2, handletextpad=0.4)


def _frontier(results: Results, metric: Metric, chosen: Sequence[Point]) -> str:
    names = [point.bundle for point in chosen]
    told = ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
    text = f"Filled: the frontier, which no other bundle beats in both: {told}."
    first = results.bundles[0].bundle
    if any(metric.name in one.against for one in results.bundles):
        text += (
            f" The thin lines are the 95 % intervals of the difference to {first}; what differs by no more than "
            "chance counts as equal."
        )
    return text


def _y(metric: Metric, point: Point) -> float:
    return point.quality.value * (100 if metric.percent else 1)


def _value(metric: Metric, point: Point) -> str:
    return f"{_y(metric, point):.2f} %" if metric.percent else number(point.quality.value)


def _colour(i: int) -> str:
    return SERIES[i % len(SERIES)]


def _marker(i: int) -> str:
    return MARKERS[(i + i // len(SERIES)) % len(MARKERS)]  # another one when colours begin again


def _plot(title: str, caption: str, facts: str, draw: Callable[[Axes], None], height: float = HEIGHT) -> Plot:
    return Plot(title, caption, for_page(render(draw, title, height), f"{title}. {facts}."))
