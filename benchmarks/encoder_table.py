"""What benchmarks/encoder.py has measured, as a table."""

from __future__ import annotations

import statistics
from typing import Any

from generation_table import Found, aligned, median, piped

OURS = "torchless int8"


def ratios(found: Found, ours: Found, shape: str) -> list[float]:
    """How many times as long as ours, in each round."""
    return [a / b for a, b in zip(found["figures"].get(shape, ()), ours["figures"].get(shape, ()))]


def time_of(found: Found, ours: Found | None, shape: str) -> str:
    """Milliseconds, and how many times as long as ours: the median over the rounds, least and most."""
    seconds = median(found, shape)
    if seconds is None:
        return ""
    told = f"{1e3 * seconds:,.{1 if seconds < 0.1 else 0}f}"
    if ours is None or found is ours:
        return told
    times = ratios(found, ours, shape)
    return f"{told} ({statistics.median(times):.2f}, {min(times):.2f} to {max(times):.2f})"


def rows_of(run: dict[str, Any]) -> list[list[str]]:
    shapes = run["settings"]["shapes"]
    there = run["contenders"]
    head = ["", *(f"{shape}, ms" for shape in shapes), "cosine error", "model, MB", "package, MB"]
    return [head, *(row(name, found, there.get(OURS), shapes) for name, found in there.items())]


def row(name: str, found: Found, ours: Found | None, shapes: list[str]) -> list[str]:
    return [
        name,
        *(time_of(found, ours, shape) for shape in shapes),
        f"{abs(found['cosine_error']):.1g}",
        f"{found['model_bytes'] / 1e6:,.0f}",
        f"{found['package_bytes'] / 1e6:,.0f}",
    ]


def notes(run: dict[str, Any]) -> str:
    settings = run["settings"]
    told = [
        f"BERT-base of random weights, {settings['threads']} threads, {run['machine']['processor']}, medians of "
        f"{settings['rounds']} interleaved rounds. In brackets how many times as long as {OURS} it takes, and the "
        "least and the most in a round."
    ]
    if settings["quick"]:
        told.append("A model of two layers: these figures only show that everything runs.")
    told += [f"{name} is missing: {reason}" for name, reason in run["missing"].items()]
    return "\n".join(told)


def text(run: dict[str, Any]) -> str:
    return f"{aligned(rows_of(run))}\n\n{notes(run)}"


def markdown(run: dict[str, Any]) -> str:
    return f"{notes(run)}\n\n{piped(rows_of(run))}\n"
