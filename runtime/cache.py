"""Keys and values of the texts that a decoder has read: room for them, and rows that come, go and change places.

Letters: B rows, H heads, C slots, n of them filled, E size of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.errors import ContextLengthError, GenerationError, MemoryLimitError
from torchless.limits import Allowance
from torchless.memory import own_pages

Numbers = npt.NDArray[np.floating[Any]]  # float32 or float16, as the graph has them

GROWTH = 256  # slots that the cache grows by


class KVCache:
    """Keys and values of several rows, float32 or float16 [layers, 2, B, H, C, E], and each row's length.

    It grows by steps of GROWTH slots up to the context, and takes its bytes from the allowance, if there is one.
    Rows that are done are dropped, and cost nothing more; others join in their place.
    """

    def __init__(
        self, layers: int, rows: int, heads: int, head_size: int, limit: int, joined: int,
        dtype: npt.DTypeLike = np.float32, allowance: Allowance | None = None,
    ) -> None:  # fmt: skip
        self.limit, self._allowance = limit, allowance
        self.lengths = np.zeros(joined, np.int64)
        self.capacity = 0
        self._shape = (layers, 2, rows, heads, 0, head_size)
        self._data: Numbers = np.zeros(self._shape, dtype)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._data.dtype

    @property
    def rows(self) -> int:
        return len(self.lengths)

    def reserve(self, slots: int) -> bool:
        """Make room for `slots` tokens a row; True if the buffer has moved."""
        if slots <= self.capacity:
            return False
        if slots > self.limit:
            raise ContextLengthError(
                f"{slots:,} tokens do not fit the model's context of {self.limit:,}: shorten the text"
            )
        grown = min(-(-slots // GROWTH) * GROWTH, self.limit)
        try:
            self._grow(grown)
        except MemoryLimitError:
            raise
        except (OSError, OverflowError, MemoryError):
            raise GenerationError(
                f"there is no memory for the cache of {self._shape[2]:,} texts of {grown:,} tokens: pass a smaller "
                "batch_size"
            ) from None
        self.capacity = grown
        return True

    def _grow(self, slots: int) -> None:
        layers, two, rows, heads, _, size = self._shape
        data = own_pages((layers, two, rows, heads, slots, size), self.dtype, self._allowance)
        filled = int(self.lengths.max(initial=0))
        data[:, :, : self.rows, :, :filled, :] = self._data[:, :, : self.rows, :, :filled, :]
        self._data = data

    def join(self) -> int:
        """A new row without tokens, in a place that is free; its index."""
        self.lengths = np.append(self.lengths, 0)
        return self.rows - 1

    def drop(self, row: int) -> None:
        """Forget a row; the last row takes its place."""
        last = self.rows - 1
        filled = int(self.lengths[last])
        if row != last:
            self._copy_row(last, row, filled)
            self.lengths[row] = self.lengths[last]
        self.lengths = self.lengths[:last]

    def _copy_row(self, source: int, target: int, filled: int) -> None:
        self._data[:, :, target, :, :filled, :] = self._data[:, :, source, :, :filled, :]

    def share(self, slots: int) -> None:
        """Give every row the first one's `slots`: a prompt that was read once."""
        self._data[:, :, 1 : self.rows, :, :slots, :] = self._data[:, :, :1, :, :slots, :]
        self.lengths[:] = slots

    def reorder(self, parents: npt.NDArray[np.int64], start: int) -> None:
        """Row r goes on from parents[r]: only the slots from `start` on differ, and only of rows that change."""
        rows = np.flatnonzero(parents != np.arange(self.rows))
        if len(rows):
            end = int(self.lengths.max())
            self._data[:, :, rows, :, start:end, :] = self._data[:, :, parents[rows], :, start:end, :]

    def copy(self) -> KVCache:
        """The same rows in a buffer of their own, no larger than they need."""
        layers, _, rows, heads, _, size = self._shape
        made = KVCache(layers, rows, heads, size, self.limit, 0, self.dtype, self._allowance)
        filled = int(self.lengths.max(initial=0))
        made.reserve(filled)
        made.lengths = self.lengths.copy()
        made._data[:, :, :, :, :filled, :] = self._data[:, :, :, :, :filled, :]
        return made

    def filled(self, row: int = 0) -> Numbers:
        """View [layers, 2, H, n, E] of what a row holds."""
        return self._data[:, :, row, :, : int(self.lengths[row]), :]

    def fill(self, content: Numbers, row: int = 0) -> None:
        """Let a row hold what `filled` has given."""
        slots = content.shape[3]
        self.reserve(slots)
        self._data[:, :, row, :, :slots, :] = content
        self.lengths[row] = slots

    def layers(self, first: int, last: int) -> list[tuple[Numbers, Numbers]]:
        """Views [last-first, H, C, E] of keys and values by layer, contiguous, as the graph takes them."""
        return [(layer[0, first:last], layer[1, first:last]) for layer in self._data]
