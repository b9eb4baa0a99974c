"""A soak of `torchless serve`: clients that read, stream, cancel and disconnect. Nothing is lost, differs or grows.

    python benchmarks/serve.py BUNDLE [--minutes 15] [--clients 8] [--seed 0] [--json FILE]
    python benchmarks/serve.py BUNDLE --compare        one batch beside a thread for each client, tokens a second

BUNDLE is a GPT. The server is a process of its own; its clients are OpenAI's, each in a thread. One client alone
asks for a tenth of the time, then all do. Of ten requests six are read to their end (half of them streams), two
streams are closed half-way, and two connections are cut while an answer is awaited.

It fails if a request gets no answer, or another one than the first of its kind got before the others began, or if
the server's memory has grown by more than 10 MB since the first tenth of the time. Latencies are of whole answers
of 32 tokens, and of the first word of a stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlsplit

import openai

import torchless
from torchless.serve.engine import Engine, Job
from torchless.stopping import Patience

PROMPTS = [
    "The people of the United States",
    "Our navy",
    "My fellow citizens, " * 12,
    "It is the duty of the Congress to",
    "The state of the treasury is " * 6,
    "I",
    "Agriculture, commerce and manufactures",
    "Peace",
]
TOKENS, LONG = 32, 200  # new tokens of an answer that is read, and of one that is ended early
GROWTH = 10.0  # megabytes
EVERY = 5.0  # seconds between two readings of the memory
ROUNDS = 5


@dataclass
class Report:
    """What a soak has found; latencies in seconds."""

    kinds: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    differ: int = 0
    memory: list[float] = field(default_factory=list)  # megabytes
    whole: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Since the first tenth of the time."""
        return max(self.memory[-3:]) - max(self.memory[: len(self.memory) // 10 + 1])


class Client:
    """One of OpenAI's clients, and what it asks."""

    def __init__(self, url: str, model: str) -> None:
        self.url, self.model = url, model
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=120)

    def asked(self, prompt: str, tokens: int = TOKENS) -> dict[str, Any]:
        return {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}

    def read(self, prompt: str, report: Report) -> str:
        started = time.perf_counter()
        text = self.openai.completions.create(**self.asked(prompt)).choices[0].text
        report.whole.append(time.perf_counter() - started)
        return str(text)

    def stream(self, prompt: str, report: Report) -> str:
        started, text = time.perf_counter(), ""
        for chunk in self.openai.completions.create(**self.asked(prompt), stream=True):
            if not text:
                report.first.append(time.perf_counter() - started)
            text += chunk.choices[0].text
        return text

    def cancel(self, prompt: str, pieces: int) -> str:
        """The text of a stream that is closed after so many pieces."""
        text = ""
        with self.openai.completions.create(**self.asked(prompt, LONG), stream=True) as chunks:
            for chunk, _ in zip(chunks, range(pieces)):
                text += chunk.choices[0].text
        return text

    def cut(self, prompt: str, seconds: float) -> None:
        """Ask, and be gone before the answer."""
        place = urlsplit(self.url)
        body = json.dumps(self.asked(prompt, LONG)).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((place.hostname, place.port)) as peer:
            peer.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(seconds)


def resident(process: int) -> float:
    """Megabytes of memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(
    clients: list[Client],
    seconds: float,
    expected: dict[str, str],
    long: dict[str, str],
    memory: Callable[[], float],
    seed: int = 0,
) -> Report:
    """Let all clients ask for so long, and once at least."""
    report, end, lock = Report(), time.monotonic() + seconds, threading.Lock()

    def work(number: int) -> None:
        chance, client = random.Random(f"{seed} {number}"), clients[number]
        while True:
            prompt, kind = (
                chance.choice(PROMPTS),
                chance.choice(["read"] * 3 + ["stream"] * 3 + ["cancel"] * 2 + ["cut"] * 2),
            )
            own, good = Report(), True
            try:
                if kind == "cut":
                    client.cut(prompt, chance.uniform(0, 0.3))
                elif kind == "cancel":
                    good = long[prompt].startswith(client.cancel(prompt, chance.randint(1, LONG // 2)))
                else:
                    good = getattr(client, kind)(prompt, own) == expected[prompt]
            except Exception as error:
                with lock:
                    report.lost.append(f"{kind}: {type(error).__name__}: {error}")
            with lock:
                report.kinds[kind] += 1
                report.differ += not good
                report.whole += own.whole
                report.first += own.first
            if time.monotonic() >= end:
                return

    with ThreadPoolExecutor(len(clients)) as pool:
        running = [pool.submit(work, number) for number in range(len(clients))]
        report.memory.append(memory())
        while time.monotonic() < end:
            time.sleep(min(EVERY, max(0.1, seconds / 40)))
            report.memory.append(memory())
        for one in running:
            one.result()
    report.memory.append(memory())
    return report


def told(name: str, report: Report) -> str:
    def shown(values: list[float]) -> str:
        if len(values) < 2:
            return "none"
        return f"{1e3 * median(values):6.0f} ms, p95 {1e3 * quantiles(values, n=20)[-1]:6.0f} ms"

    return f"{name:10} answers of {TOKENS} tokens: {shown(report.whole)}; first word: {shown(report.first)}"


def run(bundle: Path, minutes: float, count: int, seed: int) -> tuple[Report, Report, int]:
    """(one client, all of them, the server's exit code)"""
    command = [sys.executable, "-m", "torchless.cli", "serve", str(bundle), "--port", "0", "--stop-at-eof"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and process.stdin is not None
        found = re.search(r" at (http://\S+)", process.stderr.readline())
        assert found, process.stderr.read()
        clients = [Client(found[1], bundle.name) for _ in range(count)]
        expected = {prompt: clients[0].read(prompt, Report()) for prompt in PROMPTS}
        long = {prompt: clients[0].cancel(prompt, LONG) for prompt in PROMPTS}

        def asked(one: list[Client], part: float) -> Report:
            return soak(one, 60 * minutes * part, expected, long, lambda: resident(process.pid), seed)

        one = asked(clients[:1], 0.1)
        together = asked(clients, 0.9)
        process.stdin.close()
        return one, together, process.wait(60)


def compare(bundle: Path, count: int, tokens: int = 64) -> dict[str, list[float]]:
    """Tokens a second of clients over one session: in one batch, and in a thread each; interleaved rounds."""
    model = torchless.load(bundle)
    engine = Engine(model.decoder, count, "compare")
    config = model.config.override({"max_new_tokens": tokens, "eos_token_id": None})
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]

    async def one(prompt: str) -> None:
        job = Job(streams=False)
        job.write(*model.rows([model.prompt_ids(prompt)], config, Patience(cancel=job.cancelled)))
        engine.submit(job)
        await job.news.get()

    async def batch() -> None:
        await asyncio.gather(*map(one, prompts))

    def threads() -> None:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda prompt: model(prompt, max_new_tokens=tokens, eos_token_id=None), prompts))

    found: dict[str, list[float]] = {"batch": [], "threads": []}
    for turn in range(ROUNDS + 1):
        for name, work in (("batch", lambda: asyncio.run(batch())), ("threads", threads)):
            started = time.perf_counter()
            work()
            if turn:  # the first warms up
                found[name].append(count * tokens / (time.perf_counter() - started))
    engine.stop()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.compare:
        found = compare(args.bundle, args.clients)
        speeds = {name: median(values) for name, values in found.items()}
        print(
            f"{args.clients} clients: one batch {speeds['batch']:.0f} tokens/s, a thread each "
            f"{speeds['threads']:.0f} tokens/s: {speeds['batch'] / speeds['threads']:.2f} x"
        )
        return 0
    one, together, code = run(args.bundle, args.minutes, args.clients, args.seed)
    print(told("1 client", one))
    print(told(f"{args.clients} clients", together))
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(together.kinds.items()))
    print(f"{together.kinds.total():,} requests ({kinds}): {len(together.lost)} lost, {together.differ} differ")
    first, *_, last = together.memory
    print(f"memory {first:.1f} to {last:.1f} MB, growth {together.growth:.1f} MB; exit code {code}")
    for line in together.lost[:5]:
        print(line, file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps({"one": vars(one), "together": vars(together)}), encoding="utf-8")
    return int(bool(one.lost or together.lost or one.differ or together.differ or together.growth > GROWTH or code))


if __name__ == "__main__":
    sys.exit(main())
