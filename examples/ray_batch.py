"""Classify many texts with Ray Data: `map_batches` opens the model once in each of its workers.

    pip install "torchless[cpu]" "ray[data]"
    python examples/ray_batch.py [BUNDLE] [--mails FILE] [--workers 2]

BUNDLE is a classifier, by default the one that examples/first_minute.py makes. FILE has a JSON object a line, with
a "text". A local cluster of so many workers is started, on the loopback address only; on a cluster that is there,
leave `ray.init` out. It prints how often each label came, and how many are those of a direct call.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import ray

import torchless

HERE = Path(__file__).resolve().parent


class Classify:
    """What a worker of Ray does: it opens the model once, and labels batches."""

    def __init__(self, model: torchless.TextClassification) -> None:
        self.model = model  # came as its path, and was opened again here

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = self.model([str(text) for text in batch["text"]], truncation=True)
        return {**batch, "label": [one.label for one in found]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path, default=HERE / "out" / "spam-bert-int8")
    parser.add_argument("--mails", type=Path, default=HERE / "data" / "heldout-mails.jsonl")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    texts = [json.loads(line)["text"] for line in args.mails.read_text(encoding="utf-8").strip().split("\n")]

    # One thread each: the workers are what runs side by side.
    model = torchless.load(args.bundle, threads=1)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers
    ray.init(
        num_cpus=args.workers, object_store_memory=100 << 20, include_dashboard=False, _node_ip_address="127.0.0.1",
        log_to_driver=False, logging_level="ERROR",
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = (
        ray.data.from_items(
            [{"number": number, "text": text} for number, text in enumerate(texts)],
            override_num_blocks=4 * args.workers,
        )
        .map_batches(
            Classify,
            fn_constructor_args=(model,),
            compute=ray.data.ActorPoolStrategy(size=args.workers),
            batch_size=64,
        )
        .take_all()
    )
    ray.shutdown()
    labels = [row["label"] for row in sorted(rows, key=lambda row: row["number"])]
    for label, count in Counter(labels).most_common():
        print(f"{count:6,} {label}")
    direct = [one.label for one in model(texts, truncation=True)]
    print(
        f"{sum(a == b for a, b in zip(labels, direct, strict=True)):,} of {len(texts):,} labels as by a direct call"
    )


if __name__ == "__main__":
    main()
