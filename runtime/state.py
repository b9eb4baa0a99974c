"""A text that a model has read, kept so that whatever begins like it need not be read again; and its file.

Letters as in decoder.py; n tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from torchless.bundle import Bundle
from torchless.cache import KVCache, Numbers
from torchless.decoder import Decoder
from torchless.errors import InputError
from torchless.generation import Row, Token
from torchless.manifest import Manifest
from torchless.writing import write_file

Float = npt.NDArray[np.float32]

FORMAT = "torchless.state.1"
LARGEST_HEADER = 1 << 16  # bytes; a header has a few hundred
ANOTHER = "make it again with gpt.state(prompt)"


def bundle_hash(manifest: Manifest) -> str:
    """sha256 of the manifest's entries for graphs and weights: what keys and values depend on."""
    graphs = {graph.file for graph in manifest.graphs}
    names = sorted(name for name in manifest.files if name in graphs or name.endswith(".data"))
    return hashlib.sha256("".join(f"{manifest.files[name].sha256} {name}\n" for name in names).encode()).hexdigest()


class State:
    """Token ids that a model has read, with their keys and values.

    A call that gets it computes only what its prompt does not share with it, and leaves in it the prompt and what
    was added, but for the last token. What it holds changes the time that an answer takes, never the answer. One
    call at a time: fork it for others.
    """

    def __init__(self, bundle: str, cache: KVCache, ids: Sequence[int] = ()) -> None:
        self.bundle = bundle  # bundle_hash of what it was made with
        self._cache = cache
        self._ids = list(ids)  # set before the cache takes them: whatever interrupts, its length says what counts
        self._busy = threading.Lock()

    @property
    def ids(self) -> list[int]:
        """The tokens that it holds."""
        return self._ids[: len(self)]

    def __len__(self) -> int:
        return int(self._cache.lengths[0])

    def __repr__(self) -> str:
        return f"State({len(self):,} tokens)"

    def __reduce__(self) -> NoReturn:  # of copy and pickle
        raise InputError("state.fork() copies a state, state.save(path) keeps it: it cannot be copied or pickled")

    def fork(self) -> State:
        """Another one with the same text, that goes its own way."""
        with self.used():
            return State(self.bundle, self._cache.copy(), self.ids)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Keep other calls away. InputError while one is at it."""
        if not self._busy.acquire(blocking=False):
            raise InputError("another call, or a stream that has not ended, uses this state: give it state.fork()")
        try:
            yield
        finally:
            self._busy.release()

    def read(self, decoder: Decoder, ids: Sequence[int] | npt.NDArray[np.int64]) -> Float:
        """Hold these ids and nothing else; logits [V] after the last. Only it and what is new is computed.

        They are those of the ids read at once but for float32's rounding, which depends on where a piece begins.
        """
        shared = self._keep(ids)
        logits: Float = decoder.extend(self._cache, self._ids[shared:])[-1]
        return logits

    def _keep(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> int:
        """Hold no more than these ids begin with, but for the last, which has to be read for its logits."""
        most = min(len(self), len(ids) - 1)
        shared = next((i for i in range(most) if self._ids[i] != ids[i]), most)
        self._cache.lengths[0] = shared
        self._ids = [int(token) for token in ids]
        return shared

    def follow(self, decoder: Decoder, row: Row) -> Iterator[Token]:
        """The tokens that `decode` yields for one row."""
        if row.budget == 0 or row.ends(None) is not None:
            return
        with self.used():
            self._keep(row.window(decoder.context_length))
            self._cache.reserve(row.slots(decoder.context_length))
            logits = row.read(decoder, self._cache)
            if logits is None:
                return
            step = decoder.stepper(self._cache)
            while True:
                token = row.choose(0, logits)
                yield token
                if token.finish_reason:
                    return
                if row.slides and len(self) == decoder.context_length:
                    self._keep(row.window(decoder.context_length)[:-1])
                    if row.read(decoder, self._cache, without=1) is None:
                        return
                self._ids.append(token.id)
                logits = step([token.id])[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file in the format of safetensors; one that exists is replaced once the new one is whole."""
        with self.used():
            past = self._cache.filled()
            tensors = {"ids": np.array(self.ids, "<i8"), "past": past.astype(past.dtype.newbyteorder("<"))}
            ends = np.cumsum([0, *(tensor.nbytes for tensor in tensors.values())]).tolist()
            header = {"__metadata__": {"format": FORMAT, "bundle": self.bundle}} | {
                name: {"dtype": DTYPES[one.dtype.name], "shape": list(one.shape), "data_offsets": ends[i : i + 2]}
                for i, (name, one) in enumerate(tensors.items())
            }
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            content = [len(text).to_bytes(8, "little"), text, *(one.tobytes() for one in tensors.values())]
        write_file(_path(path), *content)


class LastState:
    """The state that the last call has left, for one call at a time; another call at that time gets a new one."""

    def __init__(self) -> None:
        self._left: deque[State] = deque(maxlen=1)  # its methods cannot be interrupted by another thread

    @contextlib.contextmanager
    def lent(self, make: Callable[[], State]) -> Iterator[State]:
        try:
            state = self._left.pop()
        except IndexError:
            state = make()
        try:
            yield state
        finally:
            self._left.append(state)

    def clear(self) -> None:
        self._left.clear()


def check_state(state: object, bundle: Bundle) -> None:
    """Raise InputError for what is neither None nor a state of this bundle."""
    if state is not None and not isinstance(state, State):
        raise InputError(f"state is a {type(state).__name__}: give what .state(prompt) returns")
    if state is not None and state.bundle != bundle_hash(bundle.manifest):
        raise InputError(f"the state is of another bundle than {bundle.path}: make one with its .state(prompt)")


DTYPES = {"int64": "I64", "float32": "F32", "float16": "F16"}  # safetensors' names


def _path(path: object) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path={path!r}: give the path of a file")
    return Path(path)


def load_state(path: str | os.PathLike[str], decoder: Decoder, bundle: str) -> State:
    """What State.save wrote. InputError for anything else, and for a state of another bundle."""
    where = _path(path)
    try:
        if not where.is_file():
            raise InputError(f"{where} is not a file: give one that state.save(path) wrote")
        with where.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > LARGEST_HEADER:
                raise InputError(f"{where} is not a state: give a file that state.save(path) wrote")
            header = json.loads(stream.read(length))
            cache = decoder.new_cache()
            past = cache.filled()
            layers, two, heads, _, size = past.shape
            count = _check(where, header, bundle, decoder.context_length, past)
            expected = 8 + length + 8 * count + past.itemsize * layers * two * heads * count * size
            if where.stat().st_size != expected:
                raise InputError(f"{where} is damaged, it has not its {expected:,} bytes: {ANOTHER}")
            ids = decoder.check_ids(np.frombuffer(stream.read(8 * count), "<i8"))
            numbers = np.frombuffer(stream.read(), past.dtype.newbyteorder("<"))
            numbers = numbers.reshape(layers, two, heads, count, size)
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} is not a state: give a file that state.save(path) wrote") from None
    if not np.isfinite(numbers).all():
        raise InputError(f"{where} is damaged, it holds what is not a number: {ANOTHER}")
    cache.fill(numbers)
    return State(bundle, cache, ids.tolist())


def _check(where: Path, header: Any, bundle: str, context: int, past: Numbers) -> int:
    """How many tokens the file must hold, by its header. past: an empty cache, of the model's sizes and dtype."""
    given = header if isinstance(header, dict) else {}
    told = given.get("__metadata__")
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise InputError(f"{where} is not a state of this version of torchless: {ANOTHER}")
    if told.get("bundle") != bundle:
        raise InputError(f"{where} is of another bundle, whose graph or weights differ: {ANOTHER}")
    shape = given["ids"].get("shape") if isinstance(given.get("ids"), dict) else None
    count = shape[0] if isinstance(shape, list) and len(shape) == 1 else None
    if type(count) is not int or not 0 <= count <= context:
        raise InputError(f"{where} is damaged, its number of tokens is {count!r}: {ANOTHER}")
    layers, two, heads, _, size = past.shape
    ids, numbers = 8 * count, past.itemsize * layers * two * heads * count * size
    sound = {
        "__metadata__": told,
        "ids": {"dtype": "I64", "shape": [count], "data_offsets": [0, ids]},
        "past": {
            "dtype": DTYPES[past.dtype.name],
            "shape": [layers, two, heads, count, size],
            "data_offsets": [ids, ids + numbers],
        },
    }
    if given != sound:
        raise InputError(f"{where} is damaged, its tensors are not those of this model: {ANOTHER}")
    return count
