"""Batches of sequences of unlike length, with little padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pack_by_length(rows: Sequence[Sequence[int]], budget: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The indices of `rows` in batches of at most `budget` tokens, padding counted, in random order.

    Rows of like length share a batch; among equals chance decides. A single row may exceed the budget.
    """
    lengths = np.array([len(row) for row in rows])
    order = np.argsort(lengths + rng.uniform(0, 8, len(rows)))
    batches, first = [], 0
    for i in range(1, len(order) + 1):
        if i == len(order) or lengths[order[first : i + 1]].max() * (i + 1 - first) > budget:
            batches.append(order[first:i])
            first = i
    return [batches[i] for i in rng.permutation(len(batches))]


class Epochs:
    """The batch of each step: every epoch packs the rows anew; the seed alone decides how."""

    def __init__(self, rows: Sequence[Sequence[int]], budget: int, seed: int) -> None:
        self.rows, self.budget, self.seed = rows, budget, seed
        self.epoch, self.start = 0, 0
        self.batches = self._pack()

    def __len__(self) -> int:
        """Batches in the current epoch; epochs differ by a few at most."""
        return len(self.batches)

    def at(self, step: int) -> np.ndarray:
        """The row indices of a step; steps are asked for in rising order."""
        while step >= self.start + len(self.batches):
            self.start += len(self.batches)
            self.epoch += 1
            self.batches = self._pack()
        return self.batches[step - self.start]

    def _pack(self) -> list[np.ndarray]:
        return pack_by_length(self.rows, self.budget, np.random.default_rng([self.seed, self.epoch]))


def pad(rows: Sequence[Sequence[int]], value: int = 0) -> tuple[Tensor, Tensor]:
    """Rows as ids int64 [B,S] and attention mask int64 [B,S], padded on the right with `value`."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), value, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask
