"""Parity, speed and placement of the two trained checkpoints under CUDA and TensorRT, as a table to send back.

    pip install 'onnxruntime-gpu[cuda,cudnn]' and torchless[export,quantize], then: python examples/gpu_check.py

Where a provider cannot run, one line says what is missing. Exit code 1 where one cannot, or where parity fails.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import torchless
from torchless import CUDA, TensorRT
from torchless.bundle import read_bundle
from torchless.export import export
from torchless.probe import Probe, max_error, run_probe
from torchless.providers import Options, nvidia
from torchless.providers.causes import why_not
from torchless.quantize import quantize

CHECKPOINTS = Path(__file__).parent / "checkpoints"
PROMPT = "The people of the United States"
MAIL = "You have won a prize! Click here to claim it."
FLOAT32, FLOAT16 = 1e-4, 2e-2  # allowed difference to the CPU's float32, as a share of the largest output (or of 1)
HEAD = "| model | provider | graph | nodes | error | allowed | speed over the CPU |\n" + "|---" * 7 + "|"
TOKENS, TEXTS = 64, 32


@dataclass(frozen=True)
class Case:
    """A bundle under a provider. allowed: None reports a distance (of 4-bit blocks) without judging it."""

    model: str
    bundle: Path
    provider: Options
    allowed: float | None


def bundles(out: Path) -> dict[str, Path]:
    """Each checkpoint in float32 (both dialects), float16, and float16 with blocks of 4 bits."""
    made = {}
    for name in ("sotu-gpt", "spam-bert"):
        made[name] = export(CHECKPOINTS / name, out / name, dialect="all", overwrite=True)
        for recipe in ("fp16", "fp16-int4"):
            small = out / f"{name}-{recipe}"
            made[f"{name} {recipe}"] = quantize(made[name], small, recipe=recipe, overwrite=True)
    return made


def cases(made: dict[str, Path], usable: list[str]) -> Iterator[Case]:
    for name, path in made.items():
        allowed = None if "int4" in name else FLOAT16 if "fp16" in name else FLOAT32
        if "cuda" in usable:
            yield Case(name, path, CUDA(), allowed)
            if name == "sotu-gpt fp16":
                yield Case(name, path, CUDA(cuda_graph=True), allowed)
        if "tensorrt" in usable and "fp16" not in name:
            yield Case(name, path, TensorRT(), allowed)


def work_of(model: Any) -> Callable[[], Any]:
    """What is timed: a text of 64 tokens, or a batch of 32 mails."""
    if isinstance(model, torchless.TextGeneration):
        return lambda: model(PROMPT, max_new_tokens=TOKENS, min_new_tokens=TOKENS)
    return lambda: model([MAIL] * TEXTS, batch_size=TEXTS)


def seconds(work: Callable[[], Any], rounds: int) -> float:
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def check(case: Case, reference: Path, rounds: int) -> tuple[str, bool]:
    """A row of the table, and whether the outputs are near enough to the CPU's in float32."""
    source, bundle = read_bundle(reference), read_bundle(case.bundle)
    probe = Probe.make(source.manifest)
    there = run_probe(source, source.manifest.graphs[0], probe)
    with (
        torchless.load(reference) as cpu,
        torchless.load(case.bundle, provider=case.provider) as model,
    ):
        here = run_probe(bundle, model.graph, probe, provider=case.provider)
        error = max_error(here, there) / max(1.0, max(float(np.abs(row).max()) for row in there))
        speed = seconds(work_of(cpu), rounds) / seconds(work_of(model), rounds)
        recorded = " (recorded)" if getattr(case.provider, "cuda_graph", False) else ""
        cells = [
            case.model, case.provider.called + recorded, f"{model.graph.dialect}, {model.graph.precision}",
            str(model.provider.placement), f"{error:.1e}", "-" if case.allowed is None else f"{case.allowed:.0e}",
            f"{speed:.2f}",
        ]  # fmt: skip
    return f"| {' | '.join(cells)} |", np.isfinite(error) and error <= (case.allowed or np.inf)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="keep the bundles in this folder")
    args = parser.parse_args()
    causes = {kind.name: why_not(kind()) for kind in (CUDA, TensorRT)}
    for name, cause in causes.items():
        if cause is not None:
            print(f"{name}: {cause}")
    usable = [name for name, cause in causes.items() if cause is None]
    sound = len(usable) == len(causes)
    if not usable:
        return 1
    print(f"torchless {torchless.__version__}, driver {nvidia.driver_version()}, {nvidia.gpus()}\n\n{HEAD}")
    with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
        made = bundles(args.out or Path(scratch))
        for case in cases(made, usable):
            try:
                row, right = check(case, made[case.model.partition(" ")[0]], args.rounds)
            except torchless.TorchlessError as error:
                row, right = f"| {case.model} | {case.provider.called} | {error} | | | | |", False
            print(row, flush=True)
            sound &= right
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
