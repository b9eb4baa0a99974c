"""Texts longer than the model: overlapping windows, run in common batches, and the seams between them."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from torchless.batching import Batching
from torchless.encoder import Encoder

Float = npt.NDArray[np.float32]


def run_windows(encoder: Encoder, windows: Sequence[Sequence[Encoding]], batching: Batching) -> list[list[Float]]:
    """The outputs of each text's windows, in order; windows of all texts share batches."""
    flat = [window for one in windows for window in one]
    outputs = dict(encoder(flat, batching))
    in_order = iter(range(len(flat)))
    return [[outputs[next(in_order)] for _ in one] for one in windows]


def seams(windows: Sequence[range], joined: Sequence[Container[int]]) -> list[int]:
    """Where each window but the last gives way to the next: a token of the text, the first of the next one's share.

    windows: the tokens that each has read, neighbours overlapping or touching. joined: the tokens that, to each
    window, belong together with the one before. A seam is laid where neither neighbour has joined anything, as
    near to the middle of their overlap as can be, so that both sides have seen most of the text around it; where
    there is no such place, in the middle.
    """
    found = [0]
    for (left, right), (one, other) in zip(pairwise(windows), pairwise(joined), strict=True):
        shared = range(max(right.start, found[-1]), left.stop + 1)
        middle = (right.start + left.stop) / 2
        clear = [token for token in shared if token not in one and token not in other]
        found.append(min(clear or shared, key=lambda token: abs(token - middle)))
    return found[1:]


def stitch(windows: Sequence[range], seams: Sequence[int], rows: Sequence[Float]) -> Float:
    """One row a token of the whole text, from the window whose share it is: each [T,..] -> [N,..]."""
    ends = [*seams, windows[-1].stop]
    shares = zip(windows, [0, *seams], ends, rows, strict=True)
    return np.concatenate([row[start - window.start : end - window.start] for window, start, end, row in shares])
