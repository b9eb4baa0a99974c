"""One encoder in a process of its own, in its own environment: numpy, the contender and the standard library.

    PYTHON encoder_worker.py convert MODULE SOURCE OUT FORM          writes a model; answers {}
    PYTHON encoder_worker.py serve   MODULE MODEL THREADS [ROOM]     answers commands, a line of JSON each

MODULE, a file beside this one, offers `convert(source, out, form)`, which writes the folder `out`, and
`Model(folder, threads)` with

    hidden(ids) -> float32 [B,S,D]     last hidden states of int64 [B,S], all of them tokens, none padding

{"ids": [[..]], "save": FILE} has them written to a .npy file. {"ids": [[..]]} is answered with the seconds that
they take: the median over a quarter of a second, without the first time unless that was all of it.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from typing import Any

import numpy as np
from worker import Answer, answering

ENOUGH = 0.25  # seconds


def timed(model: Any, ids: Any) -> float:
    seconds: list[float] = []
    while sum(seconds) < ENOUGH:
        start = time.perf_counter()
        model.hidden(ids)
        seconds.append(time.perf_counter() - start)
    # The first time caches are cold, since others had their turn.
    return statistics.median(seconds[1:] or seconds)


def serve(model: Any, answer: Answer) -> None:
    answer({"ready": True})
    for line in sys.stdin:
        command = json.loads(line)
        ids = np.array(command["ids"], np.int64)
        if "save" in command:
            np.save(command["save"], model.hidden(ids))
            answer({})
        else:
            answer({"seconds": timed(model, ids)})


def main() -> None:
    answer = answering()
    what, name, *given = sys.argv[1:]
    module = importlib.import_module(name)
    if what == "convert":
        module.convert(*given)
        answer({})
        return
    folder, threads, *_ = given
    serve(module.Model(folder, int(threads)), answer)


if __name__ == "__main__":
    main()
