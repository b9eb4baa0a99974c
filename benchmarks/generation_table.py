"""What benchmarks/generation.py has measured, as tables and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

Found = dict[str, Any]  # a contender's part of a run

# Ours, a neighbour, what of them, and how many times better ours is to be. Where it ends in _ms or _mb, less is.
BARS = (
    ("torchless int8", "llama.cpp Q8_0", "decode_1x32", 1.3),
    ("torchless int8", "CTranslate2 int8", "decode_1x32", 2.0),
    ("torchless int4", "llama.cpp Q4_0", "decode_1x32", 1.4),
    ("torchless int8", "CTranslate2 int8", "prefill_512_ms", 1.0),
    ("torchless int8", "CTranslate2 int8", "start_ms", 1.0),
    ("torchless int8", "llama.cpp Q8_0", "peak_mb", 1.0),
    ("torchless int8", "CTranslate2 int8", "peak_mb", 1.0),
    # Of smollm2.py
    *(
        (ours, other, what, aim)
        for ours, other in (("torchless Q8_0", "llama.cpp Q8_0"), ("torchless Q4_1", "llama.cpp Q4_1"))
        for what, aim in (("decode_1x32", 1.3), ("prefill_512_ms", 1.0), ("start_ms", 1.0), ("peak_mb", 1.0))
    ),
)
NAMES = {
    "decode_1x32": "decoding, 1 text",
    "prefill_512_ms": "prompt of 512",
    "start_ms": "process start to first token",
    "peak_mb": "peak memory",
}


def median(found: Found, what: str) -> float | None:
    figures = found["figures"].get(what)
    return float(statistics.median(figures)) if figures else None


def share(found: Found, limit: str) -> float | None:
    """How near decoding comes to a limit: the median over the rounds of what each found."""
    figures = found["figures"]
    if not figures.get("decode_1x32") or not figures.get(limit):
        return None
    return float(statistics.median(a / b for a, b in zip(figures["decode_1x32"], figures[limit])))


def ratio(ours: Found, other: Found, what: str) -> float | None:
    """How many times better: the median over the rounds of the ratio in each."""
    pairs = list(zip(ours["figures"].get(what, ()), other["figures"].get(what, ())))
    if not pairs:
        return None
    less = what.endswith(("_ms", "_mb"))
    return float(statistics.median(b / a if less else a / b for a, b in pairs))


def shown(figure: float | None, form: str = ",.0f") -> str:
    return "" if figure is None else format(figure, form)


def per_cent(figure: float | None) -> str:
    return "" if figure is None else f"{100 * figure:.0f} %"


Column = tuple[str, Callable[[Found], str]]


def figure_of(what: str, form: str = ",.0f") -> Callable[[Found], str]:
    return lambda found: shown(median(found, what), form)


def long_text(run: dict[str, Any]) -> str:
    """The name of the longest prompt's measure, which leaves room for what is added."""
    names = {
        what for found in run["contenders"].values() for what in found["figures"] if what.startswith("decode_1x")
    }
    return max(names, key=lambda what: int(what.split("x")[1]), default="decode_1x992")


def decoding(run: dict[str, Any]) -> list[Column]:
    return [
        ("weights a token reads, MB", lambda found: shown(found["read_bytes"] / 1e6)),
        ("1 text, tokens/s", figure_of("decode_1x32")),
        ("4 texts", figure_of("decode_4x32")),
        ("16 texts", figure_of("decode_16x32")),
        ("1 text, after 512 tokens", figure_of("decode_1x512")),
        (f"after {long_text(run).split('x')[1]}", figure_of(long_text(run))),
        ("limit by memory", figure_of("limit_stream")),
        ("reached", lambda found: per_cent(share(found, "limit_stream"))),
        ("limit by cache", figure_of("limit")),
        ("reached ", lambda found: per_cent(share(found, "limit"))),
    ]


def around(run: dict[str, Any]) -> list[Column]:
    return [
        ("prompt of 512, ms", figure_of("prefill_512_ms")),
        ("prompt of 32, ms", figure_of("first_token_ms")),
        ("process start to first token, ms", figure_of("start_ms")),
        ("peak memory, MB", figure_of("peak_mb")),
        ("model, MB", lambda found: shown(found["model_bytes"] / 1e6)),
        ("package, MB", lambda found: shown(found["package_bytes"] / 1e6)),
    ]


def rows_of(run: dict[str, Any], columns: list[Column]) -> list[list[str]]:
    head = ["", *(name.strip() for name, _ in columns)]
    return [head, *([name, *(cell(found) for _, cell in columns)] for name, found in run["contenders"].items())]


def bars(run: dict[str, Any]) -> list[list[str]]:
    """Rows of: what of ours against which neighbour, how many times better it is, and is to be."""
    there = run["contenders"]
    rows = [["", "beside", "times better", "wanted"]]
    for ours, other, what, wanted in BARS:
        if ours in there and other in there:
            found = ratio(there[ours], there[other], what)
            rows.append([f"{ours}, {NAMES[what]}", other, shown(found, ".2f"), f"{wanted:g}"])
    return rows


def aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def piped(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]).replace("|  |", "| |")


def notes(run: dict[str, Any]) -> str:
    settings, processor = run["settings"], run["machine"]["processor"]
    told = [f"{settings['threads']} threads, {processor}, medians of {settings['rounds']} interleaved rounds."]
    if run["bandwidth"]:
        told.append(
            f"Memory: {statistics.median(run['bandwidth']) / 1e9:.0f} GB/s, by reading 1 GiB again and again; the "
            "limit by cache is found with arrays as large as the weights, which may stay in the processor's caches."
        )
    if settings["quick"]:
        told.append("A model of two layers: these figures only show that everything runs.")
    told += [f"{name} is missing: {reason}" for name, reason in run["missing"].items()]
    return "\n".join(told)


def tables_of(run: dict[str, Any]) -> list[list[list[str]]]:
    """Those that have more than a head."""
    tables = [rows_of(run, decoding(run)), rows_of(run, around(run)), bars(run)]
    return [rows for rows in tables if len(rows) > 1]


def text(run: dict[str, Any]) -> str:
    return "\n\n".join([*map(aligned, tables_of(run)), notes(run)])


def markdown(run: dict[str, Any]) -> str:
    return "\n\n".join([notes(run), *map(piped, tables_of(run))]) + "\n"


def plot(run: dict[str, Any], path: Path) -> None:
    """Tokens a second of one text, by bits a weight, with the limit of each; readable on light and on dark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grey, blue, orange = "#7d8590", "#2f81f7", "#d9730d"
    order = sorted(
        ((name, found) for name, found in run["contenders"].items() if median(found, "decode_1x32")),
        key=lambda pair: (-pair[1]["bits"], median(pair[1], "decode_1x32")),
    )
    places, place, before = [], 0.0, None
    for _, found in order:
        place += 1.6 if before not in (None, found["bits"]) else 1.0
        before = found["bits"]
        places.append(place)
    speeds = [median(found, "decode_1x32") or 0.0 for _, found in order]
    figure, axes = pyplot.subplots(figsize=(7.5, 0.32 * place + 1.1))
    axes.barh(places, speeds, height=0.72, color=[blue if found["ours"] else grey for _, found in order])
    for limit, style in (("limit_stream", "-"), ("limit", ":")):
        for (_, found), at in zip(order, places):
            axes.plot([median(found, limit)] * 2, [at - 0.42, at + 0.42], style, color=orange, linewidth=1.6)
    axes.set_yticks(places, [f"{name}   {speed:.0f}" for (name, _), speed in zip(order, speeds)])
    axes.set_xlabel("tokens a second, one text; orange: reading the weights from memory (dotted: from caches)")
    axes.tick_params(colors=grey, length=0)
    axes.xaxis.label.set_color(grey)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.savefig(path, transparent=True, bbox_inches="tight")
    pyplot.close(figure)
