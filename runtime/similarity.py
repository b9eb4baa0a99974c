"""How alike vectors are, and which rows of a matrix are most like a query: numpy, block by block.

Letters: Q queries, N rows of the corpus, D dimension.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.errors import InputError

Float = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

ROWS = 16_384  # of the corpus at a time: with QUERIES of the queries, 16 MB of scores
QUERIES = 256


def cosine(a: Any, b: Any) -> Float:
    """[Q,D] and [N,D] -> float32 [Q,N]; a vector of zeros is like nothing, 0."""
    result: Float = unit(a) @ unit(b).T
    return result


def unit(vectors: Any) -> Float:
    """[..,D] -> float32 [..,D] of length 1; zeros stay zeros. Raises InputError for what is no number."""
    made = np.asarray(vectors, np.float32)
    if not np.isfinite(made).all():
        raise InputError("the vectors hold NaN or infinity: compute them again")
    length = np.linalg.norm(made, axis=-1, keepdims=True)
    result: Float = made / np.where(length > 0, length, np.float32(1))
    return result


def check_vectors(name: str, vectors: Any, dimension: int | None = None) -> npt.NDArray[Any]:
    """An array of vectors [N,D], left where it is (it may be a map of a file), or InputError."""
    array = array_of(name, vectors)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise InputError(f"{name}: expected numbers of shape [N, D], got {array.dtype} {list(array.shape)}")
    if dimension is not None and array.shape[1] != dimension:
        raise InputError(f"{name}: its vectors have {array.shape[1]:,} numbers, the others {dimension:,}")
    return array


def array_of(name: str, given: Any) -> npt.NDArray[Any]:
    """An array as it is, else as numpy reads it, or InputError for lists of unlike things."""
    try:
        return given if isinstance(given, np.ndarray) else np.asarray(given)
    except ValueError:
        raise InputError(f"{name}: give texts or vectors of one length, not a mixture of them") from None


def search(queries: Any, corpus: Any, top_k: int) -> tuple[Float, Indices]:
    """Scores and indices [Q,K] of the K = min(top_k, N) rows of corpus [N,D] most like each of queries [Q,D].

    Best first, of equals the first. Memory stays bounded whatever N and Q: blocks of ROWS x QUERIES scores, of
    which the best are kept.
    """
    asked = check_vectors("query", queries)
    rows = check_vectors("corpus", corpus, asked.shape[1])
    kept = min(top_k, len(rows))
    found = np.zeros((len(asked), kept), np.float32), np.zeros((len(asked), kept), np.int64)
    for first in range(0, len(asked), QUERIES):
        block = unit(asked[first : first + QUERIES])
        best: tuple[Float, Indices] = np.zeros((len(block), 0), np.float32), np.zeros((len(block), 0), np.int64)
        for start in range(0, len(rows), ROWS):
            scores = block @ unit(rows[start : start + ROWS]).T
            indices = np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)
            best = keep_best(np.hstack([best[0], scores]), np.hstack([best[1], indices]), top_k)
        found[0][first : first + QUERIES], found[1][first : first + QUERIES] = best
    return found


def keep_best(scores: Float, indices: Indices, top_k: int) -> tuple[Float, Indices]:
    """[Q,N] -> the top_k largest of each row [Q,K], sorted; of equals those that stand first."""
    if scores.shape[1] > top_k:
        least = np.partition(scores, -top_k, axis=1)[:, -top_k, None]  # the k-th largest
        above, equal = scores > least, scores == least
        room = top_k - above.sum(axis=1, keepdims=True)
        kept = np.nonzero(above | (equal & (np.cumsum(equal, axis=1) <= room)))[1].reshape(-1, top_k)
        scores, indices = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(indices, kept, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)
