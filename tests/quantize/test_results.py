"""The records of `torchless bench` go to JSON and back, and to rows of a table."""

from __future__ import annotations

import dataclasses
import json

import pytest

from torchless.errors import InputError
from torchless.quantize.results import COLUMNS, Interval, Latency, Measured, Metric, Results

ACCURACY, KL = Metric("accuracy", "accuracy", "higher", percent=True), Metric("kl", "KL divergence", "lower")
FIRST = Measured(
    "fp32", "", "fp32", 1000, load=Interval(0.5, 0.4, 0.6), start=Interval(1.5, 1.4, 1.6), peak_memory=2000,
    quality={"accuracy": Interval(0.9, 0.85, 0.95)}, latencies=(Latency(8, 128, 0.01, 0.012, 9000.0),),
)  # fmt: skip
SECOND = Measured(
    "int8", "int8", "int8", 300, quality={"accuracy": Interval(0.88, 0.82, 0.93), "kl": Interval(0.1, 0.05, 0.2)},
    against={"accuracy": Interval(-0.02, -0.03, -0.01)},
    latencies=(Latency(8, 128, 0.005, 0.006, 18000.0, Interval(2, 1.9, 2.1), "prompt"),),
)  # fmt: skip
RESULTS = Results(
    "text-classification", "mails.jsonl", 400, {"processor": "Ünit", "threads": 2}, (ACCURACY, KL), (FIRST, SECOND),
    ({"layer": 0, "error": 0.5},), ("Two texts were cut.",),
)  # fmt: skip


@pytest.mark.parametrize(
    "results", [RESULTS, dataclasses.replace(RESULTS, sensitivity=None, notes=(), bundles=(FIRST,))]
)
def test_results_come_back_from_json_as_they_were(results):
    assert Results.from_json(results.to_json()) == results
    assert json.loads(results.to_json())["version"] == 1


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"task": "x"}'])
def test_what_is_no_file_of_results_is_refused(text):
    with pytest.raises(InputError, match="not the results of torchless bench"):
        Results.from_json(text)


def test_results_of_a_later_version_and_damaged_ones_are_refused():
    with pytest.raises(InputError, match="version 2, this torchless reads 1: upgrade"):
        Results.from_json(RESULTS.to_json().replace('"version": 1', '"version": 2'))
    with pytest.raises(InputError, match=r"did not write.*surprise"):
        Results.from_json(json.dumps(json.loads(RESULTS.to_json()) | {"surprise": 1}))
    with pytest.raises(InputError, match=r"did not write.*bundles"):
        Results.from_json(json.dumps({k: v for k, v in json.loads(RESULTS.to_json()).items() if k != "bundles"}))


def test_a_number_that_json_does_not_know_is_never_written():
    broken = dataclasses.replace(RESULTS, bundles=(dataclasses.replace(FIRST, load=Interval(float("nan"), 0, 1)),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.to_json()


def test_rows_hold_every_measure_of_every_bundle_under_the_same_columns():
    rows = list(RESULTS.rows())
    assert all(tuple(row) == COLUMNS for row in rows)
    found = {(row["bundle"], row["measure"]): row for row in rows}
    assert len(found) == len(rows) == 4 + 1 + 3 + 1 + 2 + 3  # size, two times, memory; quality; speed
    accuracy = found["int8", "accuracy"]
    assert [accuracy[name] for name in ("value", "low", "high")] == [0.88, 0.82, 0.93]
    assert [accuracy[name] for name in COLUMNS[-4:]] == ["difference", -0.02, -0.03, -0.01]
    assert found["fp32", "accuracy"]["against"] == "" and ("fp32", "kl") not in found
    speed = found["int8", "throughput"]
    assert [speed[name] for name in ("kind", "batch", "length", "unit", "value")] == [
        "prompt",
        8,
        128,
        "tokens/s",
        18000.0,
    ]
    assert [speed[name] for name in COLUMNS[-4:]] == ["ratio", 2, 1.9, 2.1]
    assert found["fp32", "load"]["high"] == 0.6 and found["fp32", "peak_memory"]["unit"] == "bytes"


@pytest.mark.parametrize(
    ("low", "high", "differs"), [(-1, 1, False), (0, 1, False), (0.1, 1, True), (-2, -0.1, True)]
)
def test_a_difference_is_one_only_if_its_interval_leaves_zero_out(low, high, differs):
    assert Interval((low + high) / 2, low, high).differs is differs
    assert Interval(1 + (low + high) / 2, 1 + low, 1 + high).away_from(1) is differs
