"""BERT-base here and elsewhere: how fast texts are read in int8, and how far from float32 the answers then are.

    python benchmarks/environments.py                        # once: an environment a contender
    python benchmarks/encoder.py [--rounds 5] [--threads 2] [--only NAME,...] [--shapes 1x128,8x128] [--quick]
        [--environments FOLDER] [--models FOLDER] [--json FILE] [--markdown FILE]
    python benchmarks/encoder.py --table FILE.json [--markdown FILE]    # of an earlier run

The weights are random (seed 0) and so are the tokens: the answers are noise and the work is real. Each contender
is a process in its own environment that stays loaded, and is stopped while others have their turn. All take turns
at every shape of every round; what counts is the median over the rounds, and of ratios within a round. Texts of a
batch are equally long, so that nobody has padding to skip. Needs torchless[cpu,export,quantize,torch].
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import encoder_table
import environments
import numpy as np
from encoder_models import CONTENDERS, REFERENCE, models_in, write_checkpoint
from generation import REST, processor
from generation_models import Contender, ContenderError, Models
from generation_process import Turns

SHAPES = ("1x32", "1x128", "1x512", "8x128", "32x128")  # texts, and tokens in each
COMPARED = (16, 32)
FIRST = 5  # the first word: what stands before are special tokens
NEAR = {32: 1e-6, 8: 0.05}  # how far the cosine to float32 may be from 1, by the bits of a weight


class Run(Turns):
    """What is asked of each contender."""

    def __init__(self, models: Models, threads: int, names: list[str]) -> None:
        self.vocab_size = json.loads((models.checkpoint / "config.json").read_text())["vocab_size"]
        super().__init__(models, threads, names)

    def ids(self, texts: int, tokens: int) -> list[list[int]]:
        found: list[list[int]] = np.random.default_rng(0).integers(FIRST, self.vocab_size, (texts, tokens)).tolist()
        return found

    def hidden(self, one: Contender) -> Any:
        """Last hidden states float32 [B,S,D] of the compared tokens."""
        file = self.models.folder / "hidden.npy"
        self.workers[one.name].ask(ids=self.ids(*COMPARED), save=str(file))
        return np.load(file)

    def compare(self, one: Contender, wanted: Any) -> None:
        """Raises ContenderError for hidden states that are not those of the same model."""
        error = cosine_error(self.hidden(one), wanted)
        print(f"{one.name}: cosine error {error:.2g}", file=sys.stderr)
        if not error < NEAR[one.bits]:
            raise ContenderError(f"it computes another model: the cosine to float32 is off by {error:.2g}")
        self.found[one.name]["cosine_error"] = error

    def read(self, one: Contender, shape: str) -> None:
        told = self.workers[one.name].ask(ids=self.ids(*map(int, shape.split("x"))))
        self._note(one, shape, told["seconds"])

    def measure(self, rounds: int, shapes: list[str]) -> None:
        self.everyone(self.compare, self.hidden(CONTENDERS[REFERENCE]))
        for number in range(rounds):
            print(f"round {number + 1} of {rounds} ...", file=sys.stderr)
            time.sleep(REST)
            for shape in shapes:
                self.everyone(self.read, shape)


def cosine_error(found: Any, wanted: Any) -> float:
    """1 minus the cosine of each token's states [B,S,D] to those wanted, as a mean over the tokens."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(wanted, axis=-1)
    return float(1 - np.mean(np.sum(found * wanted, axis=-1) / lengths))


def measure(args: argparse.Namespace, names: list[str], shapes: list[str]) -> dict[str, Any]:
    environments.set_up(args.environments, [environments.OURS], None)  # that of this working tree
    with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
        models = models_in(args.models or Path(scratch), args.environments)
        models.folder.mkdir(parents=True, exist_ok=True)
        if not models.checkpoint.is_dir():
            write_checkpoint(models, args.quick)
        run = Run(models, args.threads, names)
        try:
            if REFERENCE not in run.found:
                sys.exit(f"{REFERENCE} is what the others are compared with: {run.missing[REFERENCE]}")
            run.measure(args.rounds, shapes)
        finally:
            run.close()
    return {
        "settings": {"rounds": args.rounds, "threads": args.threads, "shapes": shapes, "quick": args.quick},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "missing": run.missing,
        "contenders": run.found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="contenders, with commas between: " + ", ".join(CONTENDERS))
    parser.add_argument("--shapes", default=",".join(SHAPES), help="texts x tokens, with commas between")
    parser.add_argument("--quick", action="store_true", help="a model of two layers, to see whether all runs")
    parser.add_argument("--environments", type=Path, default=environments.FOLDER)
    parser.add_argument("--models", type=Path, help="keep the converted models here, and take those that are there")
    parser.add_argument("--table", type=Path, help="show an earlier run's figures instead")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--markdown", type=Path, help="write the table here, too")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(CONTENDERS)
    if unknown := [name for name in names if name not in CONTENDERS]:
        parser.error(f"--only {','.join(unknown)}: known are {', '.join(CONTENDERS)}")
    if REFERENCE not in names:
        names.insert(0, REFERENCE)
    if args.table:
        run = json.loads(args.table.read_text(encoding="utf-8"))
    else:
        run = measure(args, names, args.shapes.split(","))
    if args.json:
        args.json.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    print(encoder_table.text(run))
    if args.markdown:
        args.markdown.write_text(encoder_table.markdown(run), encoding="utf-8")


if __name__ == "__main__":
    main()
