"""In which files a graph's weights lie, read from the protobuf itself: onnxruntime before 1.25 follows any path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from torchless.bundle import Bundle
from torchless.errors import BundleError
from torchless.manifest import EXPORT_AGAIN, Graph

# Field numbers of onnx.proto that lead to tensors; whatever else a graph holds is skipped.
INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},  # of external_data: a key and a value
}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def check_external(bundle: Bundle, graph: Graph) -> None:
    """Raise BundleError unless every file of weights is one that the manifest lists, and so was checked."""
    path = bundle.file(graph.file)
    try:
        found = locations(path.read_bytes())
    except (ValueError, IndexError):
        raise BundleError(f"{path} is not an ONNX graph: {EXPORT_AGAIN}") from None
    for location in sorted(found):
        if not bundle.has((PurePosixPath(graph.file).parent / location).as_posix()):
            raise BundleError(
                f"{path} keeps weights in {location!r}, which the manifest does not list: do not trust this bundle"
            )


def locations(model: bytes) -> set[str]:
    """The `location` of every external tensor of an ONNX model. Raises ValueError for what is no protobuf."""
    found: set[str] = set()
    pending = [("model", memoryview(model))]
    while pending:
        kind, content = pending.pop()
        if kind == "entry":
            fields = dict(_fields(content))
            if bytes(fields.get(1, b"")) == b"location":
                found.add(str(fields.get(2, b""), "utf-8"))
            continue
        inside = INSIDE[kind]
        pending += [(inside[number], value) for number, value in _fields(content) if number in inside]
    return found


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, bytes) of a message's fields of bytes; the other kinds are passed over."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        wire = tag & 7
        if wire == VARINT:
            _, at = _varint(content, at)
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
