"""In which files a graph's weights lie, read from the protobuf itself: onnxruntime before 1.25 follows any path."""

from __future__ import annotations

from pathlib import PurePosixPath

from torchless.bundle import Bundle
from torchless.errors import BundleError
from torchless.manifest import EXPORT_AGAIN, Graph
from torchless.protobuf import fields, mapped

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


def check_external(bundle: Bundle, graph: Graph) -> None:
    """Raise BundleError unless every file of weights is one that the manifest lists, and so was checked."""
    path = bundle.file(graph.file)
    try:
        found = locations(mapped(path))
    except (ValueError, IndexError):
        raise BundleError(f"{path} is not an ONNX graph: {EXPORT_AGAIN}") from None
    for location in sorted(found):
        if not bundle.has((PurePosixPath(graph.file).parent / location).as_posix()):
            raise BundleError(
                f"{path} keeps weights in {location!r}, which the manifest does not list: do not trust this bundle"
            )


def locations(model: bytes | memoryview) -> set[str]:
    """The `location` of every external tensor of an ONNX model. Raises ValueError for what is no protobuf."""
    found: set[str] = set()
    pending = [("model", memoryview(model))]
    while pending:
        kind, content = pending.pop()
        if kind == "entry":
            entry = dict(fields(content))
            if bytes(entry.get(1, b"")) == b"location":
                found.add(str(entry.get(2, b""), "utf-8"))
            continue
        inside = INSIDE[kind]
        pending += [(inside[number], value) for number, value in fields(content) if number in inside]
    return found
