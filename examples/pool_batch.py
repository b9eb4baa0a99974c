"""Classify many texts in several processes, by `multiprocessing` or Dask: a model goes to them as its path.

    pip install "torchless[cpu]" ["dask[bag]" distributed]
    python examples/pool_batch.py [BUNDLE] [--mails FILE] [--workers 2] [--dask]

As examples/ray_batch.py, in fewer lines.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torchless

HERE = Path(__file__).resolve().parent


@functools.cache
def opened(bundle: Path) -> torchless.TextClassification:
    """One model a process, opened by its first batch; one thread each, as the processes run side by side."""
    model: torchless.TextClassification = torchless.load(bundle, threads=1)
    return model


def labels(texts: Sequence[str], bundle: Path) -> list[str]:
    return [one.label for one in opened(bundle)(list(texts), truncation=True)]


def by_pool(batches: Sequence[list[str]], bundle: Path, workers: int) -> list[list[str]]:
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return pool.map(functools.partial(labels, bundle=bundle), batches)


def by_dask(batches: Sequence[list[str]], bundle: Path, workers: int) -> list[list[str]]:
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        found: list[list[str]] = client.gather(client.map(labels, batches, bundle=bundle))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path, default=HERE / "out" / "spam-bert-int8")
    parser.add_argument("--mails", type=Path, default=HERE / "data" / "heldout-mails.jsonl")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dask", action="store_true", help="by Dask's distributed, instead of multiprocessing")
    args = parser.parse_args()
    texts = [json.loads(line)["text"] for line in args.mails.read_text(encoding="utf-8").strip().split("\n")]
    batches = [texts[start : start + 64] for start in range(0, len(texts), 64)]
    answers = (by_dask if args.dask else by_pool)(batches, args.bundle, args.workers)
    found = [label for answer in answers for label in answer]
    for label, count in Counter(found).most_common():
        print(f"{count:6,} {label}")
    direct = labels(texts, args.bundle)
    print(
        f"{sum(a == b for a, b in zip(found, direct, strict=True)):,} of {len(texts):,} labels as by a direct call"
    )


if __name__ == "__main__":
    main()
