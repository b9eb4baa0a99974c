"""Threads and spinning: decoding speed of a bundle on an idle machine and beside programs that keep it busy.

    python benchmarks/threads.py BUNDLE [--rounds 5] [--json FILE]

Each setting is a process of its own that decodes when it is told to; they take turns in every round, first with
the machine to themselves, then beside one busy process, then beside one for every core. Also told: the CPU time
that a loaded model takes in a second in which nobody asks anything, and in a program that asks for a token every
50 ms, as one that shows text to a reader does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NEW = 48  # tokens a measurement
PAUSE = 0.05  # seconds between two tokens of a program that waits
BUSY = "while True: sum(range(10_000))"
PROMPT = list(range(1000, 1032))


def work(bundle: str, threads: int, spin: bool) -> None:
    """The process of one setting: answers each line of standard input with a line of JSON."""
    import torchless

    model = torchless.load(bundle, threads=threads, spin=spin)

    def tokens(count: int) -> Any:
        return model.stream(PROMPT, max_new_tokens=count, do_sample=False, eos_token_id=None)

    for _ in tokens(4):
        pass
    for line in sys.stdin:
        cpu, start = time.process_time(), time.perf_counter()
        if line.strip() == "decode":
            model(PROMPT, max_new_tokens=1, do_sample=False)
            first = time.perf_counter() - start
            model(PROMPT, max_new_tokens=NEW + 1, do_sample=False, eos_token_id=None)
            figure = NEW / (time.perf_counter() - start - 2 * first)
        elif line.strip() == "idle":
            time.sleep(1)
            figure = time.process_time() - cpu
        else:
            for _ in model.stream(PROMPT, max_new_tokens=20, callback=_wait, do_sample=False, eos_token_id=None):
                pass
            figure = (time.process_time() - cpu) / (time.perf_counter() - start)
        print(json.dumps(figure), flush=True)


def _wait(_: Any) -> bool:
    time.sleep(PAUSE)
    return False


class Setting:
    """A setting's process, and what it has measured: figures by situation."""

    def __init__(self, bundle: str, threads: int, spin: bool) -> None:
        self.name = f"{threads or 'default'} thread{'s' * (threads != 1)}{', spinning' * spin}"
        command = [sys.executable, __file__, bundle, "--work", str(threads), str(int(spin))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.figures: dict[str, list[float]] = {}

    def measure(self, what: str, situation: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(what, file=self.process.stdin, flush=True)
        self.figures.setdefault(situation, []).append(json.loads(self.process.stdout.readline()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--work", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.bundle, args.work[0], bool(args.work[1]))
    cores = os.cpu_count() or 1
    settings = [
        Setting(args.bundle, threads, spin)
        for threads, spin in itertools.product(sorted({1, max(1, cores // 2), cores}), (False, True))
    ]
    for situation, count in (("alone", 0), ("beside one busy process", 1), ("beside one a core", cores)):
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
        try:
            for _ in range(args.rounds):
                for setting in settings:
                    setting.measure("decode", situation)
        finally:
            for one in busy:
                one.kill()
                one.wait()
    for setting in settings:
        setting.measure("idle", "CPU while idle")
        setting.measure("wait", f"CPU with {PAUSE * 1e3:.0f} ms between tokens")
        setting.process.kill()
    rows = [{"setting": s.name} | {k: statistics.median(v) for k, v in s.figures.items()} for s in settings]
    best = max(row["alone"] for row in rows)
    for row in rows:
        speeds = {k: v for k, v in row.items() if k not in ("setting",)}
        told = [f"{k} {v / best:.2f}" if not k.startswith("CPU") else f"{k} {v:.1%}" for k, v in speeds.items()]
        print(f"{row['setting']:24}" + " | ".join(told))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
