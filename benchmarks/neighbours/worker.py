"""One contender in a process of its own, in its own environment: only that and the standard library are there.

    PYTHON worker.py convert MODULE SOURCE OUT FORM      writes a model; answers {"read_bytes": bytes}
    PYTHON worker.py serve   MODULE MODEL THREADS ROOM   answers commands, a line of JSON each
    PYTHON worker.py talk    MODULE MODEL THREADS ROOM TEXT   a line at the first token; {"peak": bytes} at the end

MODULE, a file beside this one, offers `Model(folder, threads, room)`, room being the most tokens that a text will
have, with

    ids(text) -> list[int]                               the text's tokens
    generate(prompts, new, heard) -> list[list[int]]     greedy, exactly `new` tokens for each prompt
    logits(ids) -> list[float]                           those of the token that follows
    score(ids) -> list[float]                            log-probabilities of all but the first (smollm2.py)

`heard(n)` is called as soon as a prompt's n-th new token is known, counted from 1. `convert(source, out, form)`
writes the folder `out` and returns the bytes of weights that one token reads: all but the tables of embeddings,
of which it reads a row.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = Callable[[dict[str, Any]], None]


def timed(model: Any, prompts: list[list[int]], new: int) -> dict[str, Any]:
    """Seconds until every prompt has its first token, seconds from there to the end, and the new ids."""
    first = last = start = time.perf_counter()

    def heard(count: int) -> None:
        nonlocal first, last
        last = time.perf_counter()
        if count == 1:
            first = last

    ids = model.generate(prompts, new, heard)
    if [len(row) for row in ids] != [new] * len(prompts):
        raise RuntimeError(
            f"{[len(row) for row in ids]} tokens instead of {new} for each of {len(prompts)} prompts"
        )
    return {"first": first - start, "rest": last - first, "ids": ids}


def serve(model: Any, answer: Answer) -> None:
    answer({"ready": True})
    for line in sys.stdin:
        command = json.loads(line)
        if "logits" in command:
            answer({"logits": model.logits(command["logits"])})
        elif "texts" in command:
            answer({"ids": [model.ids(text) for text in command["texts"]]})
        elif "score" in command:
            answer({"logprobs": model.score(command["score"])})
        else:
            answer(timed(model, command["prompts"], command["new"]))


def talk(model: Any, answer: Answer, room: int, text: str) -> None:
    """Tell when the first token is there, go on until the text has `room` tokens, and tell the memory of it all."""

    def heard(count: int) -> None:
        if count == 1:
            answer({"first": True})

    ids = model.ids(text)
    model.generate([ids], room - len(ids), heard)
    answer({"peak": peak()})


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:  # macOS
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def answering() -> Answer:
    """What writes a line of JSON to the standard output, which from now on is nobody else's."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    return lambda found: print(json.dumps(found), file=answers, flush=True)


def main() -> None:
    answer = answering()
    what, name, *given = sys.argv[1:]
    module = importlib.import_module(name)
    if what == "convert":
        answer({"read_bytes": module.convert(*given)})
        return
    folder, threads, room, *text = given
    model = module.Model(folder, int(threads), int(room))
    if what == "serve":
        serve(model, answer)
    else:
        talk(model, answer, int(room), *text)


if __name__ == "__main__":
    main()
