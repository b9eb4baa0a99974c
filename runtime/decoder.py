"""One step of a decoder over a cache of keys and values that the graph writes in place (docs/graph.md).

Letters: B rows, S tokens given, K rows of logits asked for, V vocabulary, H heads, C slots, E size of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.bundle import Bundle
from torchless.cache import KVCache
from torchless.concatenated import ConcatenatingStep
from torchless.device import DeviceCache, DeviceStep, device_of
from torchless.errors import BundleError, InputError
from torchless.hosted import HostedSession
from torchless.manifest import EXPORT_AGAIN
from torchless.session import require
from torchless.step import Step
from torchless.tasks import TASKS

Float = npt.NDArray[np.float32]

CHUNK = 256  # tokens of a prompt a step: as fast as all at once, and memory stays bounded
CACHE_TYPES: Mapping[str, npt.DTypeLike] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
NUMPY_TYPES: Mapping[str, npt.DTypeLike] = {
    **CACHE_TYPES,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class Decoder:
    """The session of a decoder graph. It holds no text's state, so threads share it; each brings a KVCache."""

    def __init__(self, session: HostedSession, bundle: Bundle) -> None:
        manifest = bundle.manifest
        if manifest.cache is None:
            raise BundleError(f"{bundle.path}: the manifest has no cache layout: {EXPORT_AGAIN}")
        self.session = session
        self.layout = manifest.cache
        self.context_length = manifest.context_length
        self.vocab_size = manifest.vocab_size
        self.width = _check_shapes(session, bundle)  # of logits: the vocabulary, or a head's columns
        self.pasts = [
            (f"past_key_values.{i}.{kind}", f"present.{i}.{kind}")
            for i in range(self.layout.layers)
            for kind in ("key", "value")
        ]
        self.takes = {value.name: NUMPY_TYPES.get(value.type) for value in session.get_inputs()}  # what it reads
        inputs = ["input_ids", *(past for past, _ in self.pasts)]
        require(session, bundle, inputs, ["logits", *(present for _, present in self.pasts)])
        self.cache_type = _cache_type(session, bundle)
        self.reads_ahead: bool | None = None  # of another tool's graph, once it was asked (concatenated.py)
        self.device = device_of(session) if self.layout.shared else None  # None: keys and values lie with numpy

    def new_cache(self, rows: int = 1, *, joined: int | None = None) -> KVCache:
        """Room for `rows` texts, of which `joined` (by default all) are there from the beginning."""
        layout, there = self.layout, rows if joined is None else joined
        sizes = layout.layers, rows, layout.heads, layout.head_size
        if self.device is not None:
            return DeviceCache(self.device, *sizes, self.context_length, there, self.cache_type)
        allowance = self.session.allowance
        return KVCache(*sizes, limit=self.context_length, joined=there, dtype=self.cache_type, allowance=allowance)

    def step(self, cache: KVCache, first: int, last: int, tokens: int, picked: int) -> Step | ConcatenatingStep:
        """What runs the graph for rows first..last of a cache, with so many tokens in and rows of logits out."""
        if isinstance(cache, DeviceCache):
            return DeviceStep(self, cache, first, last, tokens, picked)
        kind = Step if self.layout.shared else ConcatenatingStep
        return kind(self, cache, first, last, tokens, picked)

    def extend(
        self,
        cache: KVCache,
        ids: Sequence[int] | npt.NDArray[np.int64],
        *,
        row: int = 0,
        keep: Sequence[int] | None = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Float:
        """Append ids [S] to one row, in chunks, and return logits [K,V] at the positions in `keep`.

        keep: indices into ids, ascending, by default the last one. enough: asked when the cache holds a chunk; true
        leaves the rest unread, and its logits out.

        The operator takes several tokens on a past for one row at a time only, so rows are filled one by one and
        decoded together.
        """
        if not len(ids):
            raise InputError("there are no tokens to extend the text with")
        tokens = self.check_ids(ids)
        wanted = np.asarray([len(ids) - 1] if keep is None else keep, np.int64)
        past = int(cache.lengths[row])
        cache.reserve(past + len(tokens))
        logits = []
        for start, end in chunks(len(tokens), CHUNK):
            chunk = tokens[start:end]
            here = wanted[(wanted >= start) & (wanted < start + len(chunk))] - start
            step = self.step(cache, row, row + 1, len(chunk), len(here))
            step.input_ids[0] = chunk
            step.logits_positions[0] = here
            logits.append(step.run()[0])
            cache.lengths[row] += len(chunk)
            if enough():
                break
        return np.concatenate(logits) if len(logits) > 1 else logits[0]

    def last(self, ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], *, more: bool = False) -> Float:
        """Logits [B,V] after the first lengths [B] tokens of each row of ids [B,S]; nothing is kept.

        Lengths are 1 or more. Raises ContextLengthError past the context.
        """
        cache = self.new_cache(len(ids))
        cache.reserve(ids.shape[1])
        step = self.step(cache, 0, len(ids), ids.shape[1], 1)
        step.input_ids[:] = ids
        step.logits_positions[:, 0] = lengths - 1
        return step.run(lengths, more=more)[:, 0]

    def read_one(self) -> None:
        """The least that a call can be."""
        self.extend(self.new_cache(), [0])

    def stepper(self, cache: KVCache) -> Stepper:
        return Stepper(self, cache)

    def check_ids(self, ids: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The ids as int64, or InputError for ids outside the vocabulary: the graph would read past its table."""
        try:
            tokens = np.asarray(ids)
        except ValueError:  # lists of unlike length inside
            tokens = np.zeros((0, 0))
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise InputError("token ids are a flat sequence of whole numbers")
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            raise InputError(f"token ids must be from 0 to {self.vocab_size - 1:,}")
        return tokens.astype(np.int64)


def chunks(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Bounds of pieces of at most `size`; none but a whole of 1 has length 1.

    A single token takes another attention kernel, whose rounding differs: chunks would differ from one piece.
    """
    start = 0
    while start < length:
        end = min(start + size, length)
        end -= length - end == 1 and size > 2
        yield start, end
        start = end


def _check_shapes(session: HostedSession, bundle: Bundle) -> int:
    """How wide logits are. BundleError for a manifest whose sizes are not the graph's: buffers follow them."""
    manifest = bundle.manifest
    layout, head = manifest.cache, TASKS[manifest.task].head
    assert layout is not None
    width = {"text-classification": len(manifest.labels or ()), "multiple-choice": 1}.get(head, manifest.vocab_size)
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    past, logits = shapes.get("past_key_values.0.key", [0] * 4), shapes.get("logits", [0])
    graph = (past[1], past[3], logits[-1])
    if layout.layers >= len(shapes) or graph != (layout.heads, layout.head_size, width):
        raise BundleError(
            f"{bundle.path}: the manifest's cache layout, labels or vocab_size are not those of its graph: "
            f"{EXPORT_AGAIN}"
        )
    return width


def _cache_type(session: HostedSession, bundle: Bundle) -> npt.DTypeLike:
    """What keys and values are stored as. BundleError where buffers of ours could not be bound to the graph."""
    types = {value.name: value.type for value in (*session.get_inputs(), *session.get_outputs())}
    caches = {type for name, type in types.items() if name.startswith(("past_key_values.", "present."))}
    assert bundle.manifest.cache is not None
    cast = CACHE_TYPES if not bundle.manifest.cache.shared else {"tensor(float)": np.float32}
    if len(caches) != 1 or not caches <= set(CACHE_TYPES) or types["logits"] not in cast:
        raise BundleError(
            f"{bundle.path}: the graph's cache must be of float32 or float16, its logits of float32 (they are "
            f"{', '.join(sorted(caches))} and {types['logits']}): {EXPORT_AGAIN}"
        )
    return CACHE_TYPES[caches.pop()]


class Stepper:
    """One token for every row of a cache, again and again; bound anew only when the buffer or the rows change."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._cache = decoder, cache
        self._step: Step | ConcatenatingStep | None = None
        self._rows = 0

    def __call__(self, tokens: Sequence[int]) -> Float:
        """tokens [B] -> logits [B,V], valid until the next call."""
        moved = self._cache.reserve(int(self._cache.lengths.max()) + 1)
        if self._step is None or moved or self._rows != self._cache.rows:
            self._rows = self._cache.rows
            self._step = self._decoder.step(self._cache, 0, self._rows, 1, 1)
        self._step.input_ids[:, 0] = tokens
        logits = self._step.run()[:, 0]
        self._cache.lengths += 1
        return logits
