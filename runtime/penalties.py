"""What the text so far does to the next logits: pure functions, each with its definition.

logits are float32 [V]; ids are int64 [T], the prompt and what was added to it. Each returns an array of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

NEVER = np.float32(-np.inf)


def penalize_repetition(logits: Float, ids: Ids, penalty: float) -> Float:
    """Divide the positive logits of tokens that ids hold, and multiply the negative (Keskar et al., 2019)."""
    result: Float = logits.copy()
    seen = logits[ids]
    result[ids] = np.where(seen < 0, seen * np.float32(penalty), seen / np.float32(penalty))
    return result


def penalize_counts(logits: Float, new: Ids, presence: float, frequency: float) -> Float:
    """Take presence from every token that was added, and frequency for each time (OpenAI's completions).

    new: int64 [N], what was added; the prompt does not count.
    """
    result: Float = logits.copy()
    tokens, counts = np.unique(new, return_counts=True)
    result[tokens] -= np.float32(presence) + np.float32(frequency) * counts.astype(np.float32)
    return result


def forbid_repeated_ngrams(logits: Float, ids: Ids, size: int) -> Float:
    """-inf for every token that would make a run of `size` tokens occur twice (Paulus et al., 2018)."""
    if len(ids) < size:
        return logits
    tail = ids[len(ids) - size + 1 :]
    runs = np.lib.stride_tricks.sliding_window_view(ids, size)
    return forbid(logits, runs[(runs[:, :-1] == tail).all(axis=1), -1])


def forbid_sequences(logits: Float, ids: Ids, sequences: Sequence[Sequence[int]]) -> Float:
    """-inf for every token that would complete one of these sequences."""
    result: Float = logits.copy()
    for *start, last in sequences:
        if len(start) <= len(ids) and np.array_equal(ids[len(ids) - len(start) :], start):
            result[last] = NEVER
    return result


def add_bias(logits: Float, bias: Mapping[int, float]) -> Float:
    """Add a number to the logits of some tokens."""
    result: Float = logits.copy()
    result[list(bias)] += np.array(list(bias.values()), np.float32)
    return result


def forbid(logits: Float, tokens: Sequence[int] | Ids) -> Float:
    """-inf for these tokens."""
    result: Float = logits.copy()
    result[tokens] = NEVER
    return result


def force(logits: Float, token: int) -> Float:
    """0 for this token, -inf for all others."""
    result: Float = np.full_like(logits, NEVER)
    result[token] = 0
    return result
