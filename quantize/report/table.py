"""The results as a table for a terminal: plain text in aligned columns, as wide as the terminal is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from torchless.quantize.report.wording import Cell, machine_of, overview, speeds, title_of
from torchless.quantize.results import Results

WIDTH = 100  # where there is no terminal to ask
GAP = 2  # spaces between columns


def table(results: Results, width: int = WIDTH) -> str:
    """Size, start, memory and quality of each bundle; its speed by shape; what there is to know besides.

    A figure of quality is followed by half the width of its 95 % interval. "worse", "better", "slower" and
    "faster" stand only where a bundle differs from the first by more than chance.
    """
    parts = [title_of(results), *blocks(*overview(results), left=1, width=width)]
    if any(one.latencies for one in results.bundles):
        parts.extend(_by_shape(*speeds(results), width))
    parts.append("\n".join(_wrap(note, width) for note in (*results.notes, f"Measured on {machine_of(results)}.")))
    return "\n\n".join(parts) + "\n"


def blocks(heads: Sequence[str], rows: Sequence[Sequence[Cell]], left: int, width: int) -> Iterator[str]:
    """Aligned columns, the first `left` to the left; what is too wide goes on below, after those again."""
    columns = [
        _column(head, cells, i < left) for i, (head, cells) in enumerate(zip(heads, zip(*rows, strict=True)))
    ]
    widths = [len(column[0]) for column in columns]
    names = list(range(left))
    chosen: list[int] = []
    for i in range(left, len(columns)):
        if chosen and sum(widths[j] + GAP for j in (*names, *chosen, i)) - GAP > width:
            yield _block([columns[j] for j in (*names, *chosen)])
            chosen = []
        chosen.append(i)
    yield _block([columns[j] for j in (*names, *chosen)])


def _by_shape(heads: Sequence[str], rows: Sequence[Sequence[Cell]], width: int) -> Iterator[str]:
    """The first column's texts as lines of their own, above those that they are of."""
    for block in blocks(heads[1:], [row[1:] for row in rows], left=1, width=width - 2):
        head, *lines = block.splitlines()
        shown = [f"  {head}"]
        for row, line in zip(rows, lines, strict=True):
            shown += [str(row[0]), f"  {line}"] if row[0].text else [f"  {line}"]
        yield "\n".join(shown)


def _column(head: str, cells: Sequence[Cell], left: bool) -> list[str]:
    """Lines of one width: figures to the right, and what marks them after them, to the left."""
    if left:
        width = max(len(text) for text in (head, *map(str, cells)))
        return [text.ljust(width) for text in (head, *map(str, cells))]
    marks = max(len(cell.mark) for cell in cells)
    after = marks + 1 if marks else 0
    width = max(*(len(cell.text) for cell in cells), len(head) - after)
    lines = [cell.text.rjust(width) + (f" {cell.mark}".ljust(after) if after else "") for cell in cells]
    return [(head.rjust(width) if len(head) <= width else head).ljust(width + after), *lines]


def _block(columns: Sequence[Sequence[str]]) -> str:
    return "\n".join((" " * GAP).join(line).rstrip() for line in zip(*columns, strict=True))


def _wrap(note: str, width: int) -> str:
    return textwrap.fill(note, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
