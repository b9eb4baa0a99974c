"""Bundles beside each other: the same question, the same data, figures of each; and what cannot be measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

import torchless
from torchless.bundle import read_bundle
from torchless.errors import InputError
from torchless.export import export
from torchless.quantize import bench as bench_module
from torchless.quantize import quantize
from torchless.quantize.bench import Options, bench, ids_of, names_of, shapes_of
from torchless.quantize.data import Example
from torchless.quantize.results import Results
from torchless.quantize.speed import Shape, Speed

LABELS = ("ham", "spam", "unsure")


@pytest.fixture(scope="module")
def mails(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve texts with labels."""
    rows = [{"text": text, "label": LABELS[i % 3]} for i, text in enumerate(tiny.SENTENCES * 2)]
    file = tmp_path_factory.mktemp("data") / "mails.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def int8(bert_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(bert_bundles["text-classification"], tmp_path_factory.mktemp("bench") / "small", recipe="int8")


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let speed be measured at once; what was asked for."""
    asked: list[dict[str, Any]] = []

    def measure(bundles: list[Path], ids: Any, shapes: list[Shape], **given: Any) -> list[Speed]:
        asked.append({"ids": ids, "shapes": shapes, **given})
        times = [[0.1 * (i + 1), 0.2 * (i + 1)] for i in range(len(bundles))]
        return [Speed([1.0, 2.0], [0.5, 0.6], 7_000_000, {s: [one, one] for s in shapes}) for one in times]

    monkeypatch.setattr(bench_module, "measure_speed", measure)
    return asked


def test_quality_and_speed_of_two_bundles_are_measured_on_the_same_data(
    bert_bundles: dict[str, Path], int8: Path, mails: Path
) -> None:
    first = bert_bundles["text-classification"]
    options = Options(lengths=[9], batches=[2], repeats=2, threads=1)
    results = bench([first, int8], mails, options)
    rows = [json.loads(line) for line in mails.read_text().splitlines()]
    for path, one in zip((first, int8), results.bundles):
        with torchless.load(path) as model:
            right = [model(row["text"]).label == row["label"] for row in rows]
        assert one.quality["accuracy"].value == pytest.approx(sum(right) / 12)
        assert one.size == read_bundle(path).size
        assert one.load and one.start and one.load.value < one.start.value
    assert [(one.bundle, one.recipe, one.precision) for one in results.bundles] == [
        (first.name, "", "fp32"),
        ("small", "int8", "int8"),
    ]
    assert results.bundles[0].latencies[0].against is None and results.bundles[1].latencies[0].against is not None
    assert (results.task, results.data, results.examples) == ("text-classification", "mails.jsonl", 12)
    assert results.machine["threads"] == 1 and results.machine["onnxruntime"]
    assert Results.from_json(results.to_json()) == results
    assert any("2 rounds are too few" in note for note in results.notes)


def test_without_data_there_is_speed_and_size_and_a_note(gpt_bundle: Path, untimed: list[dict[str, Any]]) -> None:
    results = bench([gpt_bundle, gpt_bundle], options=Options(lengths=[8, 60, 65], batches=[1], repeats=6))
    assert untimed[0]["shapes"] == [Shape("prompt", 1, 8), Shape("prompt", 1, 60), Shape("decode", 1, 8)]
    assert untimed[0]["rounds"] == 6 and all(0 <= token < 320 for token in untimed[0]["ids"][0])
    assert results.metrics == () and results.examples == 0 and results.data == ""
    first, second = results.bundles
    assert (first.peak_memory, first.load and first.load.value, first.start and first.start.value) == (
        7_000_000,
        0.55,
        1.5,
    )
    assert [one.against and one.against.value for one in second.latencies] == [0.5] * 3
    assert [first.bundle, second.bundle] == [gpt_bundle.name, f"{gpt_bundle.name} (2)"]
    assert results.notes[:4] == (
        "Quality was not measured, for want of data.",
        "Left out: a prompt of 65 tokens, for a context of 64.",
        "Left out: decoding after a prompt of 60, 65 tokens, for a context of 64.",
        "Speed was measured on random tokens, for want of data.",
    )


def test_either_half_can_be_left_out(
    bert_bundles: dict[str, Path], mails: Path, untimed: list[dict[str, Any]]
) -> None:
    bundle = bert_bundles["text-classification"]
    told: list[str] = []
    results = bench(
        [bundle], mails, Options(speed=False, examples=7), progress=lambda what, done, total: told.append(what)
    )
    assert not untimed and results.examples == 7 and set(told) == {"scoring"}
    assert results.bundles[0].load is None and results.bundles[0].latencies == ()
    results = bench([bundle], mails, Options(quality=False))
    assert len(untimed) == 1 and results.metrics == () and results.data == "mails.jsonl"


def test_rows_are_cut_from_the_texts_of_the_data(bert_bundles: dict[str, Path]) -> None:
    bundle = read_bundle(bert_bundles["text-classification"])
    with torchless.load(bundle.path) as model:
        ids = [model.tokenizer.ids(text, special_tokens=False) for text in tiny.SENTENCES[:3]]
    examples = [Example("", text) for text in tiny.SENTENCES]
    assert ids_of(bundle, examples, len(ids[0]) + 2) == [*ids[0], *ids[1][:2]]
    assert ids_of(bundle, [Example("", "  ")], 9) == [0]
    assert len(set(ids_of(bundle, [], 50))) > 10  # random ones


def test_names_are_unique() -> None:
    assert names_of(["a/b", Path("c")]) == ["b", "c"]
    assert names_of(["x/int8", "y/int8", "z"]) == ["x/int8", "y/int8", "z"]
    assert names_of(["x", "x", "x"]) == ["x", "x (2)", "x (3)"]


def test_shapes_keep_to_the_shortest_context(gpt_bundle: Path, bert_bundles: dict[str, Path]) -> None:
    notes: list[str] = []
    bert = read_bundle(bert_bundles["fill-mask"])
    assert shapes_of([bert], Options(lengths=[4, 4096], batches=[1, 3]), notes) == [
        Shape("text", 1, 4),
        Shape("text", 3, 4),
    ]
    assert notes == [f"Left out: a text of 4,096 tokens, for a context of {bert.manifest.context_length}."]


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: Options(lengths=[]), r"lengths=\[\]: give a list of whole numbers"),
    (lambda: Options(batches=[0]), "batches=0: give a whole number of 1 or more"),
    (lambda: Options(repeats=1), "repeats=1: give a whole number of 2 or more"),
    (lambda: Options(examples=0), "examples=0"),
    (lambda: Options(threads=-1), "threads=-1"),
    (lambda: Options(speed=False, quality=False), "neither speed nor quality"),
    (lambda: bench(["x"], options=Options(speed=False)), "without data there is only speed"),
    (lambda: bench([]), "give a list of bundles"),
    (lambda: bench("x"), "give a list of bundles"),
]


@pytest.mark.parametrize(("act", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments_are_refused(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        act()


def test_bundles_that_answer_different_questions_are_refused(
    gpt_bundle: Path, bert_bundles: dict[str, Path], tmp_path: Path
) -> None:
    one = bert_bundles["text-classification"]
    with pytest.raises(InputError, match=r"has the task text-generation, .* has text-classification: measure them"):
        bench([gpt_bundle, one])
    labels = {0: "ham", 1: "spam", 2: "maybe"}
    other = export(
        tiny.bert("text-classification", id2label=labels),
        tmp_path / "other",
        tokenizer=tiny.wordpiece(),
        check=False,
    )
    with pytest.raises(InputError, match=r"has the labels ham, spam, unsure, .* has ham, spam, maybe"):
        bench([one, other])
    without = export(tiny.gpt2(), tmp_path / "without", check=False)
    with pytest.raises(InputError, match="have different tokenizers"):
        bench([gpt_bundle, without])
