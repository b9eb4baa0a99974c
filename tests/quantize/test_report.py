"""The report: what it calls a difference is one, what it draws and writes is what was found."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from torchless.errors import InputError, QuantizationError
from torchless.quantize.report.files import as_csv, check_outputs, write
from torchless.quantize.report.frontier import headline, mean_ratio, points, worth_taking
from torchless.quantize.report.html import page
from torchless.quantize.report.plots import plots
from torchless.quantize.report.table import WIDTH, table
from torchless.quantize.report.wording import Cell, metric_cell, number, ratio_cell
from torchless.quantize.results import Interval, Latency, Measured, Metric, Results

ACCURACY = Metric("accuracy", "accuracy", "higher", percent=True)
ERROR = Metric("ece", "calibration error", "lower", percent=True)
KL = Metric("kl", "KL divergence", "lower")


def latencies(factor: float) -> tuple[Latency, ...]:
    """Two lengths; `factor` times as fast as the first bundle, which has 1."""
    against = None if factor == 1 else Interval(factor, factor - 0.25, factor + 0.25)
    return tuple(Latency(1, n, n / 8000 / factor, n / 4000 / factor, 8000 * factor, against) for n in (16, 128))


FP32 = Measured(
    "fp32", "", "fp32", 10_889_503, Interval(0.07, 0.06, 0.08), Interval(0.26, 0.25, 0.3), 96_000_000,
    {"accuracy": Interval(0.965, 0.945, 0.98), "ece": Interval(0.02, 0.01, 0.04)}, {}, latencies(1),
)  # fmt: skip
INT8 = Measured(
    "int8", "int8", "int8", 3_210_627, Interval(0.06, 0.05, 0.07), Interval(0.24, 0.23, 0.25), 91_000_000,
    {"accuracy": Interval(0.96, 0.94, 0.98), "ece": Interval(0.01, 0.0, 0.02), "kl": Interval(3e-4, 2e-4, 4e-4)},
    {"accuracy": Interval(-0.005, -0.015, 0.005), "ece": Interval(-0.01, -0.02, -0.005)}, latencies(1.5),
)  # fmt: skip
INT4 = Measured(
    "int4", "int4", "int4", 2_545_894, Interval(0.06, 0.05, 0.07), Interval(0.24, 0.23, 0.25), None,
    {"accuracy": Interval(0.9, 0.88, 0.92), "ece": Interval(0.03, 0.02, 0.04), "kl": Interval(0.01, 0.008, 0.014)},
    {"accuracy": Interval(-0.065, -0.09, -0.03), "ece": Interval(0.01, -0.01, 0.03)}, latencies(0.5),
)  # fmt: skip
RESULTS = Results(
    "text-classification", "mails.jsonl", 400, {"processor": "P", "cores": 2}, (ACCURACY, ERROR, KL),
    (FP32, INT8, INT4), notes=("One text was cut.",),
)  # fmt: skip

TABLE = """\
text-classification on mails.jsonl, 400 examples

bundle  size, MB  start, s  load, s  memory, MB  accuracy, %        calibration error, %
fp32        10.9      0.26     0.07          96  96.50 ±1.75           2.00 ±1.50
int8         3.2      0.24     0.06          91  96.00 ±2.00           1.00 ±1.00 better
int4         2.5      0.24     0.06              90.00 ±2.00 worse     3.00 ±1.00

bundle      KL divergence
fp32
int8    0.000300 ±0.00010
int4       0.0100 ±0.0030

  bundle  p50, ms  p95, ms  tokens/s  times as fast as the first
1 text of 16 tokens
  fp32       2.00     4.00     8,000
  int8       1.33     2.67    12,000  1.50 (1.25 to 1.75) faster
  int4       4.00     8.00     4,000  0.50 (0.25 to 0.75) slower
1 text of 128 tokens
  fp32       16.0     32.0     8,000
  int8       10.7     21.3    12,000  1.50 (1.25 to 1.75) faster
  int4       32.0     64.0     4,000  0.50 (0.25 to 0.75) slower

One text was cut.
Measured on P, cores 2.
"""


def test_the_table_as_a_whole() -> None:
    assert table(RESULTS) == TABLE


def test_no_line_of_the_table_is_too_wide() -> None:
    many = tuple(dataclasses.replace(ACCURACY, name=f"m{i}", title=f"measure {i}") for i in range(9))
    quality = {one.name: Interval(0.5, 0.4, 0.6) for one in many}
    bundles = tuple(
        dataclasses.replace(one, bundle=f"{'long/' * 30}{one.bundle}", quality=quality) for one in RESULTS.bundles
    )
    wide = dataclasses.replace(RESULTS, metrics=many, bundles=bundles, notes=("word " * 60,))
    lines = table(wide).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert 70 < max(map(len, table(wide, 80).splitlines())) <= 80
    assert len(table(wide, 300).splitlines()) < len(lines)
    assert sum("long/int8" in line for line in lines) == 2 + 3  # names are told apart by their ends, in each block
    assert all(f"measure {i}, %" in table(wide) for i in range(9))


def test_a_difference_is_called_one_only_when_its_interval_leaves_out_none() -> None:
    assert metric_cell(ACCURACY, INT8) == Cell("96.00 ±2.00", detail="−0.50 (−1.50 to 0.50)")
    assert metric_cell(ACCURACY, INT4) == Cell("90.00 ±2.00", "worse", False, "−6.50 (−9.00 to −3.00)")
    assert metric_cell(ERROR, INT8).mark == "better" and metric_cell(ERROR, INT4).mark == ""
    assert metric_cell(dataclasses.replace(ERROR, better=""), INT8).mark == "differs"
    assert metric_cell(KL, FP32) == Cell()
    assert ratio_cell(Interval(1.2, 0.99, 1.4)).mark == "" and ratio_cell(Interval(1.2, 1.01, 1.4)).mark == "faster"
    assert ratio_cell(Interval(0.8, 0.7, 0.99)).mark == "slower"


@pytest.mark.parametrize(
    ("value", "written"),
    [(69.6, "69.60"), (1234.5, "1,234"), (0.0012345, "0.001234"), (2.2e-7, "2.20e-07"), (0, "0"), (-3.5, "-3.500")],
)
def test_numbers_have_the_digits_that_matter(value: float, written: str) -> None:
    assert number(value) == written


def chosen(results: Results, metric: Metric, gains: list[float]) -> list[str]:
    return [point.bundle for point in worth_taking(points(results, metric, gains), metric)]


def test_the_frontier_holds_what_nothing_beats_and_takes_chance_for_no_difference() -> None:
    # int8 is no worse than fp32 by more than chance, and smaller; int4 is worse, and smaller still.
    assert chosen(RESULTS, ACCURACY, [-10.9, -3.2, -2.5]) == ["int8", "int4"]
    assert chosen(RESULTS, ACCURACY, [1, 1.5, 0.5]) == ["int8"]
    assert chosen(RESULTS, ACCURACY, [1, 0.9, 0.5]) == ["fp32"]
    assert chosen(RESULTS, ERROR, [1, 0.9, 0.5]) == ["int8", "fp32"]  # where less is better
    better = dataclasses.replace(INT8, against={"accuracy": Interval(0.01, 0.005, 0.02)})
    apart = dataclasses.replace(RESULTS, bundles=(FP32, dataclasses.replace(better, quality=INT4.quality)))
    assert chosen(apart, ACCURACY, [1, 2]) == ["fp32", "int8"]  # by its value, once it differs


def test_plots_show_what_all_bundles_have_else_what_compares_with_the_first() -> None:
    assert headline(RESULTS) is ACCURACY
    compared = dataclasses.replace(RESULTS, metrics=(dataclasses.replace(ERROR, better="", name="x"), KL))
    assert headline(compared) is KL
    assert [point.quality.value for point in points(compared, KL, [1, 2, 3])] == [0, 3e-4, 0.01]
    assert headline(dataclasses.replace(RESULTS, metrics=())) is None
    assert mean_ratio(INT8, "") == pytest.approx((1.5, 1.5, 1.5)) and mean_ratio(FP32, "") == (1, 1, 1)
    assert mean_ratio(INT8, "decode") is None


class Reader(HTMLParser):
    """Opens and closes what it reads, and keeps its texts; for every element that is left open, an error."""

    VOID = ("meta", "path", "use", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_page_needs_nothing_else_and_is_the_same_again() -> None:
    text = page(RESULTS)
    read = Reader(text)
    tags = {tag for tag, _ in read.seen}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    links = [
        value for _, given in read.seen for name, value in given.items() if name in ("src", "href", "xlink:href")
    ]
    assert links and all(link and link.startswith("#") for link in links)  # markers within the page
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", text)
    assert page(RESULTS) == text
    for figure in ("96.50 ±1.75", "−6.50 (−9.00 to −3.00)", "1.50 (1.25 to 1.75)", "One text was cut."):
        assert figure in read.texts


def test_plots_are_text_to_readers_and_take_the_colours_of_the_page() -> None:
    made = plots(RESULTS)
    assert [one.title for one in made] == [
        "accuracy against size",
        "accuracy against speed",
        "A call with 1 text, by length",
    ]
    for one in made:
        read = Reader(one.svg)
        label = next(given["aria-label"] for tag, given in read.seen if tag == "svg")
        assert label and label.startswith(f"{one.title}. ") and "int8" in label
        assert {"fp32", "int8", "int4"} <= set(read.texts)
        assert "var(--ink)" in one.svg and "var(--series-2)" in one.svg
        assert not re.search(r"#[0-9a-f]{6}|font-family|DejaVu", one.svg)
    assert "beats in both: int8 and int4." in made[0].caption and "beats in both: int8." in made[1].caption
    ids = re.findall(r'id="([^"]+)"', "".join(one.svg for one in made))
    assert len(set(ids)) == len(ids)


def test_names_cannot_write_into_the_page() -> None:
    evil = dataclasses.replace(INT8, bundle='<b>"$x_1$&日本\\')
    text = page(dataclasses.replace(RESULTS, bundles=(FP32, evil), data="<script>x</script>"))
    read = Reader(text)
    assert not {"script", "b"} & {tag for tag, _ in read.seen}
    assert read.texts.count(evil.bundle) >= 4  # tables and legends


def test_the_margin_of_a_value_at_the_end_of_its_interval_is_all_of_it() -> None:
    one = dataclasses.replace(INT8, quality={"accuracy": Interval(1.0, 0.99, 1.0)}, against={})
    assert metric_cell(ACCURACY, one) == Cell("100.00 ±1.00")


def test_sensitivity_has_a_plot_of_its_worst_parts() -> None:
    rows = tuple({"name": f"layer.{i}", "error": 0.001 * (i * 37 % 41)} for i in range(30))
    made = plots(dataclasses.replace(RESULTS, sensitivity=rows))[-1]
    assert "24 worst of 30" in made.caption
    assert "layer.10" not in made.svg and "layer.8" in made.svg  # of 0.001 and of 0.009
    worst = max(rows, key=lambda row: float(str(row["error"])))["name"]
    assert f"The worst: {worst}" in made.svg


@pytest.mark.parametrize(
    "bundles",
    [
        (FP32,),
        (dataclasses.replace(FP32, quality={}, latencies=()),),
        (dataclasses.replace(FP32, latencies=()), dataclasses.replace(INT8, latencies=())),
        (dataclasses.replace(FP32, quality={}), dataclasses.replace(INT8, quality={}, against={})),
    ],
)
def test_whatever_was_not_measured_is_left_out(bundles: tuple[Measured, ...]) -> None:
    results = dataclasses.replace(RESULTS, bundles=bundles)
    text = Reader(page(results)).texts
    assert ("Speed" in text) == bool(bundles[0].latencies)
    assert table(results).count("p50") == bool(bundles[0].latencies)


def test_every_row_of_the_results_is_in_the_csv() -> None:
    read = list(csv.DictReader(io.StringIO(as_csv(RESULTS))))
    assert len(read) == len(list(RESULTS.rows()))
    row = next(one for one in read if (one["bundle"], one["measure"]) == ("int4", "accuracy"))
    assert (row["value"], row["against"], row["compared"]) == ("0.9", "-0.065", "difference")
    starts = {one["bundle"]: one["value"] for one in read if one["measure"] == "start"}
    assert starts == {"fp32": "0.26", "int8": "0.24", "int4": "0.24"}


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {form: tmp_path / f"out.{form}" for form in ("json", "csv", "html")}
    write(RESULTS, outputs)
    assert Results.from_json(outputs["json"].read_text(encoding="utf-8")) == RESULTS
    assert outputs["csv"].read_text(encoding="utf-8") == as_csv(RESULTS)
    assert outputs["html"].read_text(encoding="utf-8") == page(RESULTS)

    def full(*given: object, **named: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match=r"out\.json was not written \(No space left on device\)"):
        write(dataclasses.replace(RESULTS, notes=()), {"json": outputs["json"]})
    assert Results.from_json(outputs["json"].read_text(encoding="utf-8")) == RESULTS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.html", "out.json"]


def test_files_that_must_not_be_written_are_refused_before_anything_is_measured(
    gpt_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "mails.jsonl"
    data.touch()
    for outputs, message in (
        ({"json": data}, r"--json .*mails\.jsonl: is read as well"),
        ({"json": tmp_path / "x", "csv": tmp_path / "x"}, r"--csv .*x: is written as well"),
        ({"html": tmp_path}, r"--html .* is a folder"),
        ({"html": tmp_path / "none" / "x.html"}, "there is no folder .*none: make it first"),
        ({"csv": gpt_bundle / "x.csv"}, "is in the folder of a bundle"),
    ):
        with pytest.raises(InputError, match=message):
            check_outputs(outputs, [data])
    check_outputs({"html": tmp_path / "x.html"}, [data])
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    check_outputs({"json": tmp_path / "x.json"}, [data])
    with pytest.raises(QuantizationError, match=r"needs matplotlib: pip install 'torchless\[quantize\]'"):
        check_outputs({"html": tmp_path / "x.html"}, [data])
