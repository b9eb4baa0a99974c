"""How fast memory is read: `python bandwidth.py THREADS BYTES...` answers bytes a second for each size, as JSON.

An array of each size is read again and again by as many threads, as a model's weights are for every token. What
fits into the processor's caches reads faster than what does not. Reductions that compute nothing else are tried in
turns, since no single one is the fastest on every processor and at every size; the fastest read counts.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

READS = (
    lambda part: part.max(),
    lambda part: np.bitwise_or.reduce(part),
    lambda part: part.view(np.float32).dot(part.view(np.float32)),  # numpy's BLAS
)
LEAST = 2e9  # bytes that each read goes through


def measure(size: int, threads: int, pool: ThreadPoolExecutor) -> float:
    array = np.ones(size // 8, np.int64)  # written, so that its pages are there
    parts = np.array_split(array, threads)
    seconds = []
    for _ in range(max(3, round(LEAST / size))):
        for read in READS:
            start = time.perf_counter()
            list(pool.map(read, parts))
            seconds.append(time.perf_counter() - start)
    return array.nbytes / min(seconds)


def main() -> None:
    threads, *sizes = map(int, sys.argv[1:])
    with ThreadPoolExecutor(threads) as pool:
        print(json.dumps([measure(size, threads, pool) for size in sizes]))


if __name__ == "__main__":
    main()
