"""A GGUF file, read with suspicion: its metadata, and its tensors mapped rather than loaded.

The gguf package knows what each type of block means; its own reader trusts every count and length in a file, so the
header is read here, where none is believed before the bytes are seen to be there.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.errors import ExportError

MAGIC, VERSIONS = b"GGUF", (2, 3)
LONGEST = 1 << 24  # bytes of one text; a chat template has thousands
AXES = 4
ALIGNMENT = "general.alignment"
DOWNLOAD = "download it again"

STRING, ARRAY = 8, 9
NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
# The types whose blocks are known here to be what llama.cpp makes of them.
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")

Raw = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file: shape as numpy has it, its type by ggml's name, and where its bytes lie."""

    name: str
    shape: tuple[int, ...]
    kind: str
    start: int
    size: int  # in bytes


@dataclass(frozen=True)
class GGUFFile:
    """metadata: texts, numbers, truth values, lists of texts and arrays of numbers by key."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def raw(self, name: str) -> Raw:
        """A tensor's bytes [rows,bytes of a row], mapped."""
        tensor = self.tensors[name]
        flat = np.memmap(self.path, np.uint8, "r", tensor.start, (tensor.size,))
        return flat.reshape(int(np.prod(tensor.shape[:-1])), -1)

    def values(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor as float32, as llama.cpp computes it."""
        from gguf import GGMLQuantizationType, quants

        tensor = self.tensors[name]
        kind = GGMLQuantizationType[tensor.kind]
        raw = self.raw(name)
        types = {"F32": "<f4", "F16": "<f2"}
        given = raw.view(types[tensor.kind]) if tensor.kind in types else raw
        made: npt.NDArray[np.float32] = quants.dequantize(given, kind).astype(np.float32)
        return made.reshape(tensor.shape)


def read_gguf(path: Path) -> GGUFFile:
    """Raises ExportError for a file that is not GGUF, is cut off, or says of itself what cannot be."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise ExportError(f"{path.name} needs the gguf package: pip install 'torchless[gguf]' ({error})") from None
    kinds: dict[int, tuple[str, int, int]] = {
        int(kind): (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType
    }
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Header(path, content).read(kinds)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise ExportError(f"{path} cannot be read ({error}): {DOWNLOAD}") from None


class _Header:
    """The file's beginning, taken piece by piece."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path = path
        self._content = content
        self._at = 0

    def read(self, kinds: Mapping[int, tuple[str, int, int]]) -> GGUFFile:
        if self._bytes(4, "its magic") != MAGIC:
            raise self._broken("does not begin with GGUF: it is another kind of file")
        version = self._number("<u4", "its version")
        if version not in VERSIONS:
            swapped = version & 0xFFFF == 0 and version
            said = "is big-endian" if swapped else f"has version {version} (read are: 2, 3)"
            raise ExportError(f"{self._path} {said}: make it again with a current llama.cpp on a common machine")
        tensors, entries = (self._number("<u8", what) for what in ("its counts", "its counts"))
        self._room(entries, 13, f"{entries:,} entries of metadata")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._text("a key of its metadata")
            if key in metadata:
                raise self._broken(f"has {key} twice")
            metadata[key] = self._value(self._number("<u4", key), key)
        self._room(tensors, 28, f"{tensors:,} tensors")
        infos = [self._info(kinds) for _ in range(tensors)]
        return GGUFFile(self._path, metadata, self._placed(infos, self._alignment(metadata)))

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        given = metadata.get(ALIGNMENT, 32)
        if not isinstance(given, int) or given < 1 or given & (given - 1):
            raise self._broken(f"has {ALIGNMENT}={given!r}, which is no power of two")
        return given

    def _placed(self, infos: list[Tensor], alignment: int) -> dict[str, Tensor]:
        """The tensors at their places in the file; every one whole, and none over another."""
        base, found = self._at + -self._at % alignment, {}
        for info in infos:
            if info.name in found:
                raise self._broken(f"has the tensor {info.name} twice")
            if info.start % alignment:
                raise self._broken(f"has the tensor {info.name} at {info.start}, no multiple of {alignment}")
            if base + info.start + info.size > len(self._content):
                raise self._broken(f"ends before the tensor {info.name} does")
            found[info.name] = Tensor(info.name, info.shape, info.kind, base + info.start, info.size)
        ordered = sorted(found.values(), key=lambda tensor: tensor.start)
        for one, other in pairwise(ordered):
            if one.start + one.size > other.start:
                raise self._broken(f"has the tensors {one.name} and {other.name} in one place")
        return found

    def _info(self, kinds: Mapping[int, tuple[str, int, int]]) -> Tensor:
        """A tensor's entry, its start still from where the tensors begin."""
        name = self._text("a tensor's name")
        axes = self._number("<u4", name)
        if not 1 <= axes <= AXES:
            raise self._broken(f"gives the tensor {name} {axes:,} axes")
        shape = tuple(self._number("<u8", name) for _ in range(axes))[::-1]  # ggml names the last axis first
        number = self._number("<u4", name)
        start = self._number("<u8", name)
        if number not in kinds:
            raise ExportError(f"{self._path}: {name} is of type {number}, which this gguf package does not know")
        kind, block, size = kinds[number]
        if kind not in KINDS:
            raise ExportError(f"{self._path}: {name} is {kind}: torchless reads {', '.join(KINDS)}")
        count = 1
        for extent in shape:
            count *= extent
        if count < 1 or shape[-1] % block:
            raise self._broken(f"gives the tensor {name} the shape {list(shape)}, which {kind} cannot have")
        return Tensor(name, shape, kind, start, count // block * size)

    def _value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self._text(key)
        if kind in NUMBERS:
            return self._number(NUMBERS[kind], key)
        if kind != ARRAY:
            raise self._broken(f"has a value of an unknown type ({kind}) in {key}")
        inner, count = self._number("<u4", key), self._number("<u8", key)
        if inner == STRING:
            self._room(count, 8, f"{count:,} texts in {key}")
            return [self._text(key) for _ in range(count)]
        if inner not in NUMBERS:  # arrays in arrays, which llama.cpp does not read either
            raise self._broken(f"has a list of an unknown type ({inner}) in {key}")
        dtype = np.dtype(NUMBERS[inner])
        self._room(count, dtype.itemsize, f"{count:,} numbers in {key}")
        return np.frombuffer(self._bytes(count * dtype.itemsize, key), dtype)

    def _number(self, kind: str, what: str) -> Any:
        dtype = np.dtype(kind)
        return np.frombuffer(self._bytes(dtype.itemsize, what), dtype)[0].item()

    def _text(self, what: str) -> str:
        (length,) = struct.unpack("<Q", self._bytes(8, what))
        if length > LONGEST:
            raise self._broken(f"has a text of {length:,} bytes in {what}")
        try:
            return self._bytes(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self._broken(f"has bytes that are no UTF-8 in {what}") from None

    def _bytes(self, count: int, what: str) -> bytes:
        if count > len(self._content) - self._at:
            raise self._broken(f"ends in {what}")
        self._at += count
        return self._content[self._at - count : self._at]

    def _room(self, count: int, size: int, what: str) -> None:
        """Whether so many things of so many bytes at least can still come."""
        if count * size > len(self._content) - self._at:
            raise self._broken(f"is too short for the {what} that it announces")

    def _broken(self, how: str) -> ExportError:
        return ExportError(f"{self._path} {how}: {DOWNLOAD}")
