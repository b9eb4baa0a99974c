"""The process of one bundle in `torchless bench`: it loads the bundle, then times what it is asked.

    python -m torchless.quantize.speed_process BUNDLE [THREADS]

It writes one JSON line when it is ready and one for each line that it reads, and ends with its input:

    -> {"load": seconds of torchless.load and of reading the tokenizer}
    <- {"kind": "text" | "prompt" | "decode", "rows": [B rows of L ids each], "calls": N}
    -> {"seconds": [N of them]}
    <- {"kind": "memory"}
    -> {"peak_memory": bytes, or null}
    -> {"error": why it could not}, after which it goes on
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchless.errors import TorchlessError

if TYPE_CHECKING:
    from torchless.cache import KVCache
    from torchless.decoder import Decoder
    from torchless.encoder import Encoder
    from torchless.model import Model

Ids = npt.NDArray[np.int64]
STATUS = Path("/proc/self/status")


def time_text(encoder: Encoder, ids: Ids, calls: int) -> list[float]:
    """Seconds of each call for a batch of texts, int64 [B,L]: ids in, the task's output out."""
    mask, types = np.ones_like(ids), np.zeros_like(ids)
    return _time(lambda: encoder.run(ids, mask, types), calls)


def time_prompt(decoder: Decoder, ids: Ids, calls: int) -> list[float]:
    """Seconds of each reading of B prompts of L tokens into a new cache, row by row as in generation."""
    return _time(lambda: _filled(decoder, ids), calls)


def time_decode(decoder: Decoder, ids: Ids, calls: int) -> list[float]:
    """Seconds of each step that adds a token to all B texts after their prompts; choosing it is not counted."""
    step = decoder.stepper(_filled(decoder, ids))
    tokens = step(ids[:, -1].tolist()).argmax(axis=-1).tolist()  # this one binds the buffers
    seconds = []
    for _ in range(calls):
        begin = time.perf_counter()
        logits = step(tokens)
        seconds.append(time.perf_counter() - begin)
        tokens = logits.argmax(axis=-1).tolist()
    return seconds


TIMERS: dict[str, Callable[[Any, Ids, int], list[float]]] = {
    "text": time_text,
    "prompt": time_prompt,
    "decode": time_decode,
}


def peak_memory() -> int | None:
    """Bytes of memory that this process has held at most, mapped weights among them; None where none tells."""
    if STATUS.exists():  # on Linux getrusage would count what the parent held when it started this process
        found = (line.split() for line in STATUS.read_text().splitlines())
        return next((1024 * int(parts[1]) for parts in found if parts[:1] == ["VmHWM:"]), None)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def answer(model: Model, question: dict[str, Any]) -> dict[str, Any]:
    """What the process says to one question."""
    if question["kind"] == "memory":
        return {"peak_memory": peak_memory()}
    try:
        timer = TIMERS[question["kind"]]
        return {"seconds": timer(model.runner, np.array(question["rows"], np.int64), question["calls"])}
    except TorchlessError as error:
        return {"error": str(error)}


def main(bundle: str, threads: str = "") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent ends this process
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints stands in no answer's way

    def say(told: dict[str, Any]) -> None:
        out.write(json.dumps(told) + "\n")
        out.flush()

    import torchless

    begin = time.perf_counter()
    try:
        with torchless.load(bundle, threads=int(threads) if threads else None) as model:
            if model.bundle.has("tokenizer.json"):
                model.tokenizer  # noqa: B018  (it is read when first asked for)
            say({"load": time.perf_counter() - begin})
            for line in sys.stdin:
                say(answer(model, json.loads(line)))
    except TorchlessError as error:
        say({"error": str(error)})


def _filled(decoder: Decoder, ids: Ids) -> KVCache:
    cache = decoder.new_cache(len(ids))
    for row, prompt in enumerate(ids):
        decoder.extend(cache, prompt, row=row)
    return cache


def _time(call: Callable[[], object], calls: int) -> list[float]:
    seconds = []
    for _ in range(calls):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return seconds


if __name__ == "__main__":
    main(*sys.argv[1:])
