"""From matplotlib's axes to SVG that takes its colours and letters from the page around it."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 5.0  # inches; the page scales it
# Colours that nothing else has, each to be replaced by one of the page's.
INK, FAINT, CARD = "#010203", "#040506", "#070809"
SERIES = tuple(f"#a{i}b{i}c{i}" for i in range(8))
COLOURS = {INK: "var(--ink)", FAINT: "var(--faint)", CARD: "var(--card)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "path.simplify": False,
}


def render(draw: Callable[[Axes], None], salt: str, height: float) -> str:
    """What `draw` puts on axes, as SVG, the same for the same figures. salt: unlike that of other plots."""
    import matplotlib

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters are the page's, not those of matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return written.getvalue()


def for_page(svg: str, alt: str) -> str:
    """Only the <svg>, with the page's colours and letters, and a text for those who cannot see it."""
    start = re.search(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', svg)
    assert start is not None
    inside = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[start.end() :], flags=re.DOTALL)
    inside = re.sub(r'<g id="[^"]*">', "<g>", inside)  # nothing refers to these, and each plot has the same
    inside = re.sub(r"font: (?:\w+ )*([\d.]+px)[^;\"]*", r"font-size: \1", inside)  # as older versions write it
    inside = re.sub(r"font-family: [^;\"]*;?\s*", "", inside)
    for colour, variable in COLOURS.items():
        inside = inside.replace(colour, variable)
    return f'<svg {start[1]} role="img" aria-label="{html.escape(alt)}">{inside.strip()}'
