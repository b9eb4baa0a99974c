"""What guessing tokens gains and costs: prompt lookup and a draft model beside plain decoding, prompt by prompt.

    python benchmarks/speculation.py [--rounds 5] [--threads 2] [--no-gpt2] [--json FILE]

Models: the committed sotu-gpt in float32 and int8, after passages of its held-out texts, and GPT-2 124M of random
weights in int8, after noise. Texts: `quotes` says pieces of the prompt with a few other tokens between, in place of
what the model chooses (so small a model does not quote by itself, and a step costs the same); `likeliest` is greedy
and goes round in circles; `draws` (temperature 1) repeats nothing, so that guessing can only cost. The draft model
of sotu-gpt in float32 is its own int8. Contenders take turns in every round; what counts is the median over the
rounds and the ratio to plain decoding. Needs torchless[cpu,export,quantize,torch].
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import torchless
from torchless.drafts import Drafter, DraftModel, PromptLookup, speculate
from torchless.export import export
from torchless.generation import Row, decode
from torchless.generation_config import GenerationConfig
from torchless.quantize import quantize
from torchless.sampling import Sampler, make_sampler

EXAMPLES = Path(__file__).parents[1] / "examples"
PASSAGE, QUOTE, BETWEEN = 150, 28, 4  # tokens of a prompt, of a quote from it, and of what stands between quotes
TEXTS, NEW = 4, 128  # prompts of a case, and tokens that each gets
LOOKUP = ("prompt lookup", lambda: PromptLookup(10, longest=2))


@dataclass
class Case:
    """One model on one kind of text, decoded in several ways."""

    name: str
    model: torchless.TextGeneration
    prompts: list[list[int]]
    sampler: Callable[[list[int]], Sampler]
    ways: dict[str, Callable[[], Drafter]]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)

    def run(self) -> None:
        """Every way once; prompts are continued one by one."""
        for way, make in {"plain": None, **self.ways}.items():
            rows = [Row(ids, NEW, self.sampler(ids)) for ids in self.prompts]
            decoder = self.model.decoder
            start = time.perf_counter()
            for _ in decode(decoder, rows, together=1) if make is None else speculate(decoder, rows, make):
                pass
            self.seconds.setdefault(way, []).append(time.perf_counter() - start)
            self.rows[way] = rows

    def report(self) -> list[dict[str, Any]]:
        plain = statistics.median(self.seconds["plain"])
        return [
            {
                "case": self.name,
                "way": way,
                "speed": round(plain / statistics.median(self.seconds[way]), 2),
                "same_texts": f"{sum(map(same, self.rows['plain'], self.rows[way]))} of {len(self.prompts)}",
                "drafted_per_step": round(per_step(self.rows[way], "drafted"), 2),
                "accepted_per_step": round(per_step(self.rows[way], "accepted"), 2),
            }
            for way in self.ways
        ]


class Quoting(Sampler):
    """Takes the work of a greedy Sampler and says a text that quotes its prompt."""

    def __call__(self, logits: Any, ids: Any, added: int, guess: Any = None) -> int:
        super().__call__(logits, ids, added, guess)
        quote, place = divmod(added, QUOTE + BETWEEN)
        generator = np.random.default_rng(quote)
        start = int(generator.integers(PASSAGE - QUOTE))
        return int(ids[start + place] if place < QUOTE else generator.choice(ids[:PASSAGE]))


def greedy(_: list[int]) -> Sampler:
    return Sampler()


def drawn(_: list[int]) -> Sampler:
    return make_sampler(GenerationConfig(do_sample=True, seed=1), NEW)


def same(one: Row, other: Row) -> bool:
    return bool(np.array_equal(one.ids, other.ids))


def per_step(rows: list[Row], what: str) -> float:
    told = [row.speculation for row in rows if row.speculation is not None]
    return float(sum(getattr(one, what) for one in told) / sum(one.steps for one in told))


def sotu_cases(scratch: Path, threads: int) -> list[Case]:
    fp32 = export(EXAMPLES / "checkpoints" / "sotu-gpt", scratch / "sotu", check=False)
    model = torchless.load(fp32, threads=threads)
    small = torchless.load(quantize(fp32, scratch / "sotu-int8"), threads=threads)
    ids = model.tokenizer.ids((EXAMPLES / "data" / "heldout-sotu.txt").read_text(encoding="utf-8")[:40_000])
    passages = [ids[start : start + PASSAGE] for start in range(0, TEXTS * 1000, 1000)]
    lookup = dict([LOOKUP])
    both = lookup | {"draft model": lambda: DraftModel(small.decoder, 20)}
    return [
        Case("sotu-gpt fp32, quotes", model, passages, lambda _: Quoting(), lookup),
        Case("sotu-gpt fp32, likeliest", model, passages, greedy, both),
        Case("sotu-gpt fp32, draws", model, passages, drawn, both),
        Case("sotu-gpt int8, quotes", small, passages, lambda _: Quoting(), lookup),
        Case("sotu-gpt int8, likeliest", small, passages, greedy, lookup),
        Case("sotu-gpt int8, draws", small, passages, drawn, lookup),
    ]


def gpt2_cases(scratch: Path, threads: int) -> list[Case]:
    torch.manual_seed(0)
    fp32 = export(transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval(), scratch / "gpt2", check=False)
    model = torchless.load(quantize(fp32, scratch / "gpt2-int8"), threads=threads)
    prompts = np.random.default_rng(0).integers(0, 50257, (1, PASSAGE)).tolist()
    return [
        Case("GPT-2 124M int8, quotes", model, prompts, lambda _: Quoting(), dict([LOOKUP])),
        Case("GPT-2 124M int8, draws", model, prompts, drawn, dict([LOOKUP])),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-gpt2", action="store_true", help="leave GPT-2 124M out")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
        print("exporting and quantizing ...", file=sys.stderr)
        cases = sotu_cases(Path(scratch), args.threads)
        cases += [] if args.no_gpt2 else gpt2_cases(Path(scratch), args.threads)
        for number in range(args.rounds + 1):  # the first does not count: kernels are packed and caches filled
            print(f"round {number} of {args.rounds} ...", file=sys.stderr)
            for case in cases:
                case.run()
                if number == 0:
                    case.seconds.clear()
        rows = [row for case in cases for row in case.report()]
        for case in cases:
            case.model.close()
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    print("  ".join(key.ljust(width) for key, width in widths.items()))
    for row in rows:
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))
    if args.json:
        settings = {"rounds": args.rounds, "threads": args.threads, "texts": TEXTS, "new": NEW}
        args.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
