"""Decoding speed of GPT-2 124M: this runtime in fp32, int8 and int4 beside transformers' generate in torch fp32.

    python benchmarks/decode.py [--rounds 5] [--threads 2] [--json FILE]

The weights are random (seed 0), so the text is noise and the work is real. All contenders take turns in every
round; what counts is the median over the rounds and the ratio to torch. Needs torchless[cpu,export,quantize,torch].
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

import torchless
from torchless.bundle import read_bundle
from torchless.decoder import Step
from torchless.export import export
from torchless.quantize import quantize

PROMPT, LONG, NEW = 32, 512, 64  # tokens: a short prompt and what follows it; a long prompt alone
RECIPES = ("int8", "int4")


class Contender:
    """Something that reads prompts and continues them."""

    def __init__(self, name: str, size: int, generate: Callable[[list[int], int], Any]) -> None:
        self.name, self.size, self.generate = name, size, generate
        self.decode: list[float] = []  # seconds a token
        self.prefill: list[float] = []  # seconds for the long prompt and one token
        self.overhead: list[float] = []  # share of a token's time spent outside onnxruntime


def ours(name: str, bundle: Path, threads: int) -> Contender:
    model = torchless.load(bundle, threads=threads)

    def generate(ids: list[int], new: int) -> Any:
        return model(ids, max_new_tokens=new, do_sample=False, eos_token_id=None)

    return Contender(name, read_bundle(bundle).size, generate)


def in_torch(model: torch.nn.Module) -> Contender:
    def generate(ids: list[int], new: int) -> Any:
        given = torch.tensor([ids])
        with torch.no_grad():
            return model.generate(  # type: ignore[operator]
                given, attention_mask=torch.ones_like(given), max_new_tokens=new, min_new_tokens=new,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return Contender("torch fp32 (transformers generate)", size, generate)


class Watch:
    """Counts the seconds that decoding steps spend inside onnxruntime, to tell the loop's own share."""

    def __init__(self) -> None:
        self.inside = 0.0
        self._run = Step.run

    def __enter__(self) -> Watch:
        watch, run = self, self._run

        def timed(step: Step) -> Any:
            session, binding = step._session, step._binding

            class Timed:
                @staticmethod
                def run_with_iobinding(_: Any) -> None:
                    start = time.perf_counter()
                    session.run_with_iobinding(binding)
                    watch.inside += time.perf_counter() - start

            step._session = Timed  # type: ignore[assignment]
            try:
                return run(step)
            finally:
                step._session = session

        Step.run = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Step.run = self._run  # type: ignore[method-assign]


def measure(one: Contender, short: list[int], long: list[int]) -> None:
    """Decoding: the difference of a long and a short continuation, so that the prompt's time falls out."""
    start = time.perf_counter()
    one.generate(short, 1)
    first = time.perf_counter() - start
    with Watch() as watch:
        start = time.perf_counter()
        one.generate(short, NEW + 1)
        whole = time.perf_counter() - start
    one.decode.append((whole - first) / NEW)
    if watch.inside:
        one.overhead.append(1 - watch.inside / whole)
    start = time.perf_counter()
    one.generate(long, 1)
    one.prefill.append(time.perf_counter() - start)


def report(contenders: list[Contender]) -> list[dict[str, Any]]:
    torch_decode = statistics.median(contenders[-1].decode)
    torch_prefill = statistics.median(contenders[-1].prefill)
    return [
        {
            "contender": one.name,
            "megabytes": round(one.size / 1e6, 1),
            "tokens_per_second": round(1 / statistics.median(one.decode), 1),
            "decode_ratio": round(torch_decode / statistics.median(one.decode), 2),
            "prefill_512_ms": round(1e3 * statistics.median(one.prefill), 1),
            "prefill_ratio": round(torch_prefill / statistics.median(one.prefill), 2),
            "loop_share": round(statistics.median(one.overhead), 4) if one.overhead else None,
        }
        for one in contenders
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
        print("exporting and quantizing GPT-2 124M ...", file=sys.stderr)
        bundles = {"fp32": export(model, Path(scratch) / "fp32", check=False)}
        for recipe in RECIPES:
            bundles[recipe] = quantize(bundles["fp32"], Path(scratch) / recipe, recipe=recipe)
        contenders = [ours(f"torchless {name}", path, args.threads) for name, path in bundles.items()]
        contenders.append(in_torch(model))
        generator = np.random.default_rng(0)
        short, long = (generator.integers(0, 50257, size).tolist() for size in (PROMPT, LONG))
        for one in contenders:  # once without counting: kernels are packed and caches filled
            one.generate(short, 4)
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds} ...", file=sys.stderr)
            for one in contenders:
                measure(one, short, long)
        rows = report(contenders)
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    print("  ".join(key.ljust(width) for key, width in widths.items()))
    for row in rows:
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))
    if args.json:
        settings = {"rounds": args.rounds, "threads": args.threads, "prompt": PROMPT, "new": NEW, "long": LONG}
        args.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
