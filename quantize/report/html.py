"""The results as one HTML page that needs nothing else: no network, no script; light or dark, as its reader is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from torchless.quantize.report.plots import Plot, plots
from torchless.quantize.report.wording import Cell, overview, speeds, title_of
from torchless.quantize.results import Results

LIGHT = {
    "page": "#ffffff", "card": "#f6f8fa", "line": "#d5dae0", "ink": "#1f2328", "quiet": "#59636e",
    "faint": "#9aa3ad", "good": "#1a7f37", "bad": "#b42318",
}  # fmt: skip
DARK = {
    "page": "#14171c", "card": "#1c2128", "line": "#363d47", "ink": "#e6e9ed", "quiet": "#a3adb8",
    "faint": "#6b7683", "good": "#5fce85", "bad": "#ff8f85",
}  # fmt: skip
# One for each of plots.SERIES; told apart by form too, so colour is never needed.
SERIES_LIGHT = ("#1f6feb", "#c2571a", "#1f8f55", "#9a3fb0", "#b3261e", "#0b7a86", "#8a6100", "#5a626c")
SERIES_DARK = ("#74acff", "#f2975f", "#62d394", "#d892e8", "#ff938a", "#5bc9d6", "#e3b74d", "#b4bbc4")

STYLE = """
:root { color-scheme: light dark; LIGHT }
@media (prefers-color-scheme: dark) { :root { DARK } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
.quiet, figcaption, li { color: var(--quiet); font-size: .9rem; }
ul { padding-left: 1.2rem; max-width: 46rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .75rem 1.5rem;
  margin: 1.25rem 0 0; padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
dt { color: var(--quiet); font-size: .8rem; }
dd { margin: 0; font-size: .95rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; background: var(--card); color: var(--quiet); font-weight: 600; vertical-align: bottom; }
thead th, th:first-child { white-space: normal; overflow-wrap: break-word; min-width: 5.5rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--page); font-weight: 600; }
thead th:first-child, tr.group th { background: var(--card); }
tr.group th { color: var(--quiet); font-size: .85rem; }
.good, .bad, .plain { margin-left: .35rem; font-size: .8rem; font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); } .plain { color: var(--quiet); }
small { display: block; color: var(--quiet); font-size: .78rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
figure svg { display: block; width: 100%; height: auto; }
figure text { font-family: inherit; }
figcaption { margin-top: .5rem; overflow-wrap: anywhere; }
"""


def page(results: Results) -> str:
    """The page, the same for the same results. Raises QuantizationError without matplotlib."""
    title = escape(title_of(results))
    several = len(results.bundles) > 1
    shown = "\n".join(_figure(plot) for plot in plots(results))
    notes = [*results.notes, *HOW_TO_READ[: 3 if several else 1]]
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="quiet">{_compared(results)}</p>',
        _facts(results),
        "<h2>Size and quality</h2>" if results.metrics else "<h2>Size</h2>",
        _table(*_turned(*overview(results))),
        f'<h2>Plots</h2>\n<div class="plots">\n{shown}\n</div>' if shown else "",
        f"<h2>Speed</h2>\n{_table(*_grouped(*speeds(results)))}" if results.bundles[0].latencies else "",
        "<h2>How to read this</h2>",
        "<ul>\n" + "\n".join(f"<li>{escape(note)}</li>" for note in notes) + "\n</ul>",
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} · torchless bench</title>\n<style>{_style()}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


HOW_TO_READ = (
    "± is half the width of the 95 % interval, by the bootstrap over the examples; all of it beside 0 and 100 %.",
    "better, worse, faster and slower stand only where a bundle differs from the first by more than chance: where "
    "the interval of the difference on the same examples leaves out 0, or that of the ratio in the same rounds 1. "
    "The small figures are that difference and its interval.",
    "Times as fast is the median over the rounds, in each of which all bundles take turns; its interval follows.",
)


def _style() -> str:
    def variables(colours: dict[str, str], series: Sequence[str]) -> str:
        named = colours | {f"series-{i}": colour for i, colour in enumerate(series)}
        return " ".join(f"--{name}: {colour};" for name, colour in named.items())

    return STYLE.replace("LIGHT", variables(LIGHT, SERIES_LIGHT)).replace("DARK", variables(DARK, SERIES_DARK))


def _compared(results: Results) -> str:
    first, *others = (f"<strong>{escape(one.bundle)}</strong>" for one in results.bundles)
    if not others:
        return f"{first}, measured with torchless bench."
    told = ", ".join(others[:-1]) + (" and " if len(others) > 1 else "") + others[-1]
    return f"{told}, compared with {first} by torchless bench."


def _facts(results: Results) -> str:
    facts = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in results.machine.items()
    )
    return f"<dl>{facts}</dl>"


Row = Sequence[Cell]


def _turned(heads: Sequence[str], rows: Sequence[Row]) -> tuple[list[str], list[Row]]:
    """A column a bundle, which leaves room for any number of measures."""
    columns = list(zip(*rows, strict=True))
    measures: list[Row] = [[Cell(head), *column] for head, column in zip(heads[1:], columns[1:], strict=True)]
    return ["", *(cell.text for cell in columns[0])], measures


def _grouped(heads: Sequence[str], rows: Sequence[Row]) -> tuple[Sequence[str], list[Row]]:
    """Without the first column, whose texts become rows of their own."""
    grouped: list[Row] = []
    for first, *rest in rows:
        if first.text:
            grouped.append([first])
        grouped.append(rest)
    return heads[1:], grouped


def _table(heads: Sequence[str], rows: Sequence[Row]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "\n".join(_lines(len(heads), rows))
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _lines(width: int, rows: Sequence[Row]) -> Iterator[str]:
    for first, *rest in rows:
        if not rest:
            yield f'<tr class="group"><th scope="rowgroup" colspan="{width}">{escape(first.text)}</th></tr>'
            continue
        cells = "".join(f"<td>{escape(cell.text)}{_mark(cell)}{_detail(cell)}</td>" for cell in rest)
        yield f'<tr><th scope="row">{escape(first.text)}</th>{cells}</tr>'


def _mark(cell: Cell) -> str:
    if not cell.mark:
        return ""
    kind = {True: "good", False: "bad", None: "plain"}[cell.good]
    return f'<span class="{kind}">{escape(cell.mark)}</span>'


def _detail(cell: Cell) -> str:
    return f"<small>{escape(cell.detail)}</small>" if cell.detail else ""


def _figure(plot: Plot) -> str:
    title = plot.title[:1].upper() + plot.title[1:]
    return (
        f"<figure>\n<h3>{escape(title)}</h3>\n{plot.svg}\n<figcaption>{escape(plot.caption)}</figcaption>\n"
        "</figure>"
    )
