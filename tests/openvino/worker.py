"""Runs under the OpenVINO wheel: what each bundle answers there, for the test that has torch to compare with.

usage: worker.py TASKS RESULTS    TASKS: a JSON list of {"bundle", "ids" or "rows"}; RESULTS: a folder
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import torchless
from torchless.bundle import read_bundle
from torchless.decoder import Decoder
from torchless.encoder import Encoder
from torchless.providers.first import Settings, open_first
from torchless.tasks import TASKS

Arrays = dict[str, Any]


def decode(decoder: Decoder, ids: list[int]) -> Arrays:
    """Logits at every token: read at once, in pieces, row by row of a ragged batch, and greedily continued."""
    length = len(ids)
    whole = decoder.extend(decoder.new_cache(), ids, keep=range(length))
    cache, cut = decoder.new_cache(), [0, length // 3, length // 3 + 1, length - 2]
    pieces = [decoder.extend(cache, ids[a:b], keep=range(b - a)) for a, b in pairwise(cut) if b > a]
    step = decoder.stepper(cache)
    pieces += [step([token]).copy() for token in ids[cut[-1] :]]
    ragged = decoder.new_cache(3)
    starts = [length - 4, 1, length // 2]
    for row, start in enumerate(starts):
        decoder.extend(ragged, ids[:start], row=row)
    step = decoder.stepper(ragged)
    together = [step([ids[start + ahead] for start in starts]).copy() for ahead in range(4)]
    lengths = np.array([1, length, 3])
    padded = np.zeros((3, length), np.int64)
    for row, count in zip(padded, lengths):
        row[:count] = ids[:count]
    return {
        "whole": whole,
        "pieces": np.concatenate(pieces),
        "ragged": np.stack(together),
        "last": decoder.last(padded, lengths),
    }


def encode(encoder: Encoder, rows: list[tuple[list[int], list[int]]]) -> Arrays:
    """Every row in one padded batch, whose padding would change the answer if it were seen; and each alone."""
    shape = len(rows), max(len(ids) for ids, _ in rows)
    ids, mask, types = np.full(shape, encoder.vocab_size - 1), np.zeros(shape, int), np.zeros(shape, int)
    for i, (row, segments) in enumerate(rows):
        ids[i, : len(row)], types[i, : len(row)], mask[i, : len(row)] = row, segments, 1
    found: Arrays = {}
    together = encoder.run(ids, mask, types)
    for i, (row, segments) in enumerate(rows):
        alone = encoder.run(np.array([row]), np.ones((1, len(row)), int), np.array([segments]))[0]
        found[f"alone {i}"] = alone
        found[f"together {i}"] = together[i, : len(row)] if alone.ndim == 2 else together[i]
    return found


def answer(task: dict[str, Any]) -> Arrays:
    bundle = read_bundle(task["bundle"])
    opened = open_first(bundle, Settings(provider="openvino", strict=True))
    if "ids" in task:
        found = decode(Decoder(opened.session, bundle), task["ids"])
        if bundle.manifest.task == "text-generation":
            with torchless.load(task["bundle"], provider="openvino") as gpt:
                found["greedy"] = np.array(gpt(task["ids"][:9], max_new_tokens=25).token_ids)
        return found
    return encode(Encoder(opened.session, bundle, *TASKS[bundle.manifest.task].outputs), task["rows"])


def main() -> None:
    tasks, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    for number, task in enumerate(tasks):
        np.savez(out / f"{number}.npz", **answer(task))


if __name__ == "__main__":
    main()
