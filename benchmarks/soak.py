"""Soak: thousands of short generations of every kind, in several threads on one model; nothing may grow or differ.

    python benchmarks/soak.py BUNDLE [--generations 10000] [--threads 4] [--cancel 0.2] [--seed 0] [--json FILE]

Prompts of 1 to 64 random tokens get 1 to 32 more: greedy and drawn, alone, in lists, as streams, with stop strings,
beams, guesses, states and windows that slide past the context. A share of them is ended early, by another thread or
by a stream that is closed half-way. After every hundred all threads rest, and the resident memory is read.

It fails if memory has grown by more than 10 MB since the first hundred. That is 1 KB for each generation of 10,000,
less than one could leave behind of what it makes (the binding of its buffers alone has more); malloc's free lists
grow by some 7 MB with four threads. onnxruntime's arena keeps the most that was ever asked of it at once, so all
threads begin by reading long prompts at the same time: else they do so by chance, thousands of generations later.

It fails as well if a text differs from what the same call gave alone, before the others began; what was ended early
has to be a beginning of that.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torchless
from torchless import Generation, TextGeneration

BATCH = 100  # generations between two readings of the memory
GROWTH = 10.0  # megabytes
REFERENCES = 48  # calls whose text is known
AGAIN = 0.5  # of the generations are one of them
PROMPT, BUDGET, LIST = 64, 32, 5  # at most: tokens of a prompt, new tokens, prompts of a list
LONG = 5  # long prompts that each thread reads at first
LONGEST_WAIT = 0.02  # seconds until another thread ends a text
HALF = "\N{REPLACEMENT CHARACTER}"  # what a character becomes whose other half was not waited for
STOPS = [" the", "e", ",", "an"]
# How often each kind of generation comes.
KINDS = {"call": 5, "list": 3, "stream": 3, "stop": 2, "beams": 1, "lookup": 1, "state": 2, "slide": 1}
ENDED = ("call", "stream", "stop", "lookup", "slide")  # kinds of one text, which can be ended as it grows


@dataclass(frozen=True)
class Job:
    """One generation: what kind it is of, its prompts, and its settings."""

    kind: str
    prompts: list[list[int]]
    settings: dict[str, Any]

    @classmethod
    def draw(cls, chance: random.Random, model: TextGeneration) -> Job:
        kind = chance.choices([*KINDS], [*KINDS.values()])[0]
        room = model.context_length - BUDGET
        settings: dict[str, Any] = {"max_new_tokens": chance.randint(1, BUDGET), "eos_token_id": None}
        if kind != "lookup" and chance.random() < 0.5:
            settings |= {"temperature": chance.uniform(0.5, 1.5), "seed": chance.randrange(1000)}
            settings |= chance.choice([{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.05}])
        settings |= {
            "list": {"batch_size": chance.randint(1, LIST)},
            "stop": {"stop_strings": chance.sample(STOPS, 2)},
            "beams": {"num_beams": chance.randint(2, 4)},
            "lookup": {"prompt_lookup_num_tokens": 5},
            "slide": {"overflow": "slide"},
        }.get(kind, {})
        prompts = []
        for _ in range(chance.randint(2, LIST) if kind == "list" else 1):
            length = chance.randint(1, min(PROMPT, room))
            if kind == "slide":
                length = chance.randint(model.context_length - 8, model.context_length + 8)
            prompts.append([chance.randrange(model.decoder.vocab_size) for _ in range(length)])
        if kind == "lookup":
            prompts = [(prompts[0] * PROMPT)[: min(PROMPT, room)]]  # something to look up
        return cls(kind, prompts, settings)

    def ask(self, model: TextGeneration) -> list[Generation]:
        prompt = self.prompts[0]
        if self.kind == "list":
            return model(self.prompts, **self.settings)
        if self.kind == "stream":
            stream = model.stream(prompt, **self.settings)
            pieces = "".join(stream)
            assert stream.result is not None and stream.result.text == pieces
            return [stream.result]
        if self.kind == "state":  # another text that begins alike goes its own way
            state = model.state(prompt[: len(prompt) // 2 + 1])
            other = model([*prompt[: len(prompt) // 2 + 1], 1], state=state.fork(), **self.settings)
            return [model(prompt, state=state, **self.settings), other]  # type: ignore[list-item]
        return [model(prompt, **self.settings)]

    def ask_and_cancel(self, model: TextGeneration, cancel: threading.Event) -> str:
        """The text until another thread ended it."""
        return model(self.prompts[0], cancel=cancel, **self.settings).text  # type: ignore[no-any-return, union-attr]

    def ask_and_close(self, model: TextGeneration, pieces: int) -> str:
        """The text of a stream that is closed after so many pieces."""
        stream, text = model.stream(self.prompts[0], **self.settings), ""
        for _, piece in zip(range(pieces), stream):
            text += piece
        stream.close()
        return text


@dataclass
class Report:
    """What a soak has found: memory in megabytes after every hundred, and the jobs whose text differed."""

    memory: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def growth(self) -> float:
        return self.memory[-1] - self.memory[0]

    @property
    def ok(self) -> bool:
        return not self.wrong and self.growth <= GROWTH


def resident() -> float:
    """Megabytes of memory that the process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def canceller(seed: int) -> Iterator[Callable[[], threading.Event]]:
    """Gives events that a thread of its own sets a little later."""
    chance, waiting = random.Random(seed), queue.SimpleQueue[threading.Event | None]()

    def work() -> None:
        while (event := waiting.get()) is not None:
            time.sleep(chance.uniform(0, LONGEST_WAIT))
            event.set()

    def ask() -> threading.Event:
        event = threading.Event()
        waiting.put(event)
        return event

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield ask
    finally:
        waiting.put(None)
        thread.join()


def soak(
    model: TextGeneration,
    generations: int,
    threads: int,
    cancel: float,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Ask the model so often in so many threads; the share `cancel` is ended early."""
    chance, report = random.Random(seed), Report()
    known = [Job.draw(chance, model) for _ in range(REFERENCES)]
    alone = [job.ask(model) for job in known]
    endable = [index for index, job in enumerate(known) if job.kind in ENDED]
    started = time.monotonic()

    def one(number: int) -> str:
        """Do one generation; the kind that it was of."""
        chance = random.Random(f"{seed} {number}")
        if chance.random() < cancel:
            index = chance.choice(endable)
            way = chance.choice(["cancelled", "closed"])
            if way == "cancelled":
                text = known[index].ask_and_cancel(model, late())
            else:
                text = known[index].ask_and_close(model, chance.randrange(BUDGET))
            if not alone[index][0].text.startswith(text.rstrip(HALF)):
                report.wrong.append(f"{way}: {known[index]}")
            return way
        if chance.random() < AGAIN:
            index = chance.randrange(REFERENCES)
            if known[index].ask(model) != alone[index]:
                report.wrong.append(f"differs: {known[index]}")
            return known[index].kind
        job = Job.draw(chance, model)
        job.ask(model)
        return job.kind

    together = threading.Barrier(threads)

    def read_long(number: int) -> None:
        together.wait()
        for _ in range(LONG):
            Job("slide", [[number] * model.context_length], {"max_new_tokens": 1, "overflow": "slide"}).ask(model)

    with canceller(seed) as late, ThreadPoolExecutor(threads) as pool:
        list(pool.map(read_long, range(threads)))
        for done in range(0, generations, BATCH):
            report.kinds.update(pool.map(one, range(done, min(done + BATCH, generations))))
            report.memory.append(resident())
            tell(
                f"{min(done + BATCH, generations):6,} generations  {report.memory[-1]:7.1f} MB  "
                f"{(done + BATCH) / (time.monotonic() - started):5.1f} a second  {len(report.wrong)} differ"
            )
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--generations", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=4, help="that ask at once; each operator has its own")
    parser.add_argument("--cancel", type=float, default=0.2, help="share of the generations that is ended early")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    with torchless.load(args.bundle) as model:
        report = soak(
            model, args.generations, args.threads, args.cancel, args.seed,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    for line in report.wrong[:10]:
        print(line)
    first, last = report.memory[0], report.memory[-1]
    print(", ".join(f"{count:,} {kind}" for kind, count in report.kinds.most_common()))
    print(
        f"{first:.1f} MB after the first {BATCH}, {last:.1f} MB at the end: {last / first:.3f} of it, "
        f"{max(report.memory):.1f} MB at most; {len(report.wrong)} texts differ"
    )
    if report.growth > GROWTH:
        print(f"memory has grown by {report.growth:.1f} MB, more than {GROWTH:.0f}")
    if args.json:
        figures = {"memory": report.memory, "kinds": report.kinds, "wrong": report.wrong, "ok": report.ok}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
