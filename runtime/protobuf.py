"""Protocol buffers, read field by field: enough to look into an ONNX file without the onnx package."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def mapped(path: Path) -> memoryview:
    """A file's bytes, of which only what is looked at is read. ValueError for an empty one."""
    with path.open("rb") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, bytes) of a message's fields of bytes; the other kinds are passed over."""
    for number, value in _all(content):
        if isinstance(value, memoryview):
            yield number, value


def numbers(content: memoryview) -> Iterator[tuple[int, int]]:
    """(number, value) of a message's whole numbers; the other kinds are passed over."""
    for number, value in _all(content):
        if isinstance(value, int):
            yield number, value


def _all(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Raises ValueError or IndexError for what is no message."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        wire = tag & 7
        if wire == VARINT:
            value, at = _varint(content, at)
            yield tag >> 3, value
        elif wire in (FIXED32, FIXED64):
            at += 4 if wire == FIXED32 else 8
        elif wire == BYTES:
            length, at = _varint(content, at)
            yield tag >> 3, content[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {wire}")
    if at != len(content):
        raise ValueError("cut off")


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
