"""What `memory_limit` holds a model to: onnxruntime's arena, and the keys and values of a decoder's texts.

The arena has the weights as onnxruntime packs them and all that a run computes with. On the CPU it belongs to the
process (its "environment"), but a session keeps the one that it was opened with, so that each can have its own.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

from torchless.bundle import Bundle
from torchless.errors import MemoryLimitError
from torchless.manifest import Graph
from torchless.ort import onnxruntime

if TYPE_CHECKING:
    import onnxruntime as ort

# What an arena says that has no room; a failed allocation of the system's says something else.
BEYOND = re.compile(r"Available memory of (\d+) is smaller than requested bytes of (\d+)")
AS_REQUESTED = 1  # kSameAsRequested: an arena that doubles would be full at half of its limit

_registering = threading.Lock()


def shares(bundle: Bundle, graph: Graph, limit: int) -> tuple[int, int]:
    """How a limit is shared: bytes for the arena, and for a decoder's caches half of what its weights leave.

    Raises MemoryLimitError for one that the weights alone may pass. Packed they are no larger than on disk, as was
    measured; onnxruntime itself would pack them in any case, and then know no limit at all.
    """
    files = bundle.manifest.files
    own = [name for name in files if name.startswith(graph.file)]
    if len(own) < 2:  # its weights lie in another graph's file
        own += [name for name in files if name.endswith(".data")]
    weights = sum(files[name].size for name in own)
    if limit <= weights:
        raise MemoryLimitError(
            f"memory_limit={limit:,}: the weights of {bundle.path} alone take up to {weights:,} bytes: load with a "
            "higher limit"
        )
    caches = (limit - weights) // 2 if bundle.manifest.cache is not None else 0
    return limit - caches, caches


def open_limited(path: str, options: ort.SessionOptions, limit: int, **given: Any) -> ort.InferenceSession:
    """An InferenceSession on the CPU whose arena holds `limit` bytes."""
    ort = onnxruntime()
    options.add_session_config_entry("session.use_env_allocators", "1")
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    arena = ort.OrtArenaCfg({"max_mem": limit, "arena_extend_strategy": AS_REQUESTED})
    with _registering:  # the next registration replaces it, for sessions that are opened later
        ort.create_and_register_allocator(where, arena)
        return ort.InferenceSession(path, options, **given)


def exceeded(error: Exception, limit: int | None = None) -> MemoryLimitError | None:
    """What to say where an arena had no room; None for any other failure."""
    found = BEYOND.search(str(error))
    if found is None:
        return None
    left, asked = (int(number) for number in found.groups())
    told = "the limit" if limit is None else f"memory_limit={limit:,}"
    return MemoryLimitError(
        f"a call needs more than {told} allows, an operator asked for {asked:,} bytes where {left:,} were left: "
        "give shorter texts or a smaller batch_size, or load with a higher limit"
    )


class Allowance:
    """Bytes that the caches of a model's texts may take together. Threads share it."""

    def __init__(self, limit: int, told: int) -> None:
        self._left, self._told = limit, told
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Raises MemoryLimitError for more than there is."""
        with self._lock:
            if size > self._left:
                raise MemoryLimitError(
                    f"memory_limit={self._told:,} leaves {self._left:,} bytes for keys and values of texts, and "
                    f"{size:,} are needed: give shorter texts or a smaller batch_size, or load with a higher limit"
                )
            self._left -= size

    def give(self, size: int) -> None:
        with self._lock:
            self._left += size
