"""Encoders with relative positions: DeBERTa-v3-small's and MPNet-base's blocks here in fp32 and int8, and in torch.

    python benchmarks/relative.py [--rounds 9] [--threads 2] [--family deberta-v2] [--json FILE]

The weights are random (seed 0) and the vocabulary is short, so the answers are noise and the work is real. All
contenders take turns in every round; what counts is the median over the rounds and the ratio to torch. Needs
torchless[cpu,export,quantize,torch].
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from torchless.bundle import read_bundle
from torchless.encoder import Encoder
from torchless.export import export
from torchless.providers import choose_provider
from torchless.quantize import quantize
from torchless.session import open_session

SHAPES = ((1, 32), (1, 128), (1, 512), (8, 128))  # texts, and tokens in each
VOCABULARY = 8000
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "deberta-v2": lambda: transformers.DebertaV2Model(
        transformers.DebertaV2Config(
            vocab_size=VOCABULARY,
            hidden_size=768,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=3072,
            relative_attention=True,
            position_buckets=256,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
        )
    ),
    "mpnet": lambda: transformers.MPNetModel(
        transformers.MPNetConfig(vocab_size=VOCABULARY, max_position_embeddings=514)
    ),
}
Run = Callable[[Any, Any], Any]  # input_ids and attention_mask, int64 [B,S]


class Contender:
    """Something that reads a batch of texts."""

    def __init__(self, family: str, name: str, size: int, run: Run) -> None:
        self.family, self.name, self.size, self.run = family, name, size, run
        self.seconds: dict[tuple[int, int], list[float]] = {shape: [] for shape in SHAPES}

    def median(self, shape: tuple[int, int]) -> float:
        return statistics.median(self.seconds[shape])


def in_torch(family: str, model: torch.nn.Module) -> Contender:
    def run(ids: Any, mask: Any) -> Any:
        with torch.inference_mode():
            return model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return Contender(family, "torch fp32", size, run)


def ours(family: str, name: str, path: Path, threads: int) -> Contender:
    bundle = read_bundle(path)
    session = open_session(bundle, bundle.manifest.graphs[0], choose_provider("cpu"), threads=threads)
    encoder = Encoder(session, bundle, "last_hidden_state")
    return Contender(
        family, f"torchless {name}", bundle.size, lambda ids, mask: encoder.run(ids, mask, np.zeros_like(ids))
    )


def contenders(family: str, scratch: Path, threads: int) -> list[Contender]:
    torch.manual_seed(0)
    model = MODELS[family]().eval()
    fp32 = export(model, scratch / f"{family}-fp32", check=False)
    int8 = quantize(fp32, scratch / f"{family}-int8")
    return [
        ours(family, "fp32", fp32, threads),
        ours(family, "int8", int8, threads),
        in_torch(family, model),
    ]


def report(families: dict[str, list[Contender]]) -> list[dict[str, Any]]:
    """Milliseconds a batch, and how many times faster than torch (the last contender of each family)."""
    rows: list[dict[str, Any]] = []
    for family in families.values():
        for one in family:
            row: dict[str, Any] = {
                "model": one.family, "contender": one.name, "megabytes": round(one.size / 1e6, 1)
            }  # fmt: skip
            for shape in SHAPES:
                texts, tokens = shape
                row[f"{texts}x{tokens}_ms"] = round(1e3 * one.median(shape), 1)
                row[f"{texts}x{tokens}_ratio"] = round(family[-1].median(shape) / one.median(shape), 2)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--family", choices=sorted(MODELS), help="only this one")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = np.random.default_rng(0)
    batches = {shape: generator.integers(3, VOCABULARY, shape) for shape in SHAPES}
    with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
        print("exporting and quantizing ...", file=sys.stderr)
        chosen = [args.family] if args.family else list(MODELS)
        families = {family: contenders(family, Path(scratch), args.threads) for family in chosen}
        for number in range(args.rounds + 1):
            print(f"round {number} of {args.rounds} ...", file=sys.stderr)
            for shape, ids in batches.items():
                for one in (one for family in families.values() for one in family):
                    start = time.perf_counter()
                    one.run(ids, np.ones_like(ids))
                    if number:  # the first is not counted: kernels are packed and caches filled
                        one.seconds[shape].append(time.perf_counter() - start)
        rows = report(families)
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    print("  ".join(key.ljust(width) for key, width in widths.items()))
    for row in rows:
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))
    if args.json:
        settings = {"rounds": args.rounds, "threads": args.threads, "vocabulary": VOCABULARY}
        args.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
