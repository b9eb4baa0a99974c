"""Memory that goes back to the system once it is free: glibc keeps pieces of it for allocations that never come."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torchless.limits import Allowance

# Tokens of a batch, padding counted, whose memory is given back when the call is over (docs/performance.md).
LARGE = 1024


def give_back_freed() -> None:
    """Ask the C library to return what it holds of freed memory; nothing happens where it cannot (malloc_trim(3)).

    A millisecond, and worth it after something large that was made of small pieces.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def own_pages(
    shape: Sequence[int], dtype: npt.DTypeLike = np.float32, allowance: Allowance | None = None
) -> npt.NDArray[Any]:
    """Zeros in pages of their own, which go back to the system with the array; those never written take no memory.

    For large arrays that come and go: of those that malloc gave, glibc keeps some for every thread. allowance: what
    their bytes are taken from, and given back to. Raises MemoryLimitError where it has fewer.
    """
    size = np.dtype(dtype).itemsize * math.prod(shape)
    if not size:
        return np.zeros(shape, dtype)
    private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    if allowance is not None:
        allowance.take(size)
    try:
        pages = mmap.mmap(-1, size, **private)
    except BaseException:
        if allowance is not None:
            allowance.give(size)
        raise
    if allowance is not None:
        weakref.finalize(pages, allowance.give, size)
    return np.frombuffer(pages, dtype).reshape(shape)
