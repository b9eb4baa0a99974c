"""Finds the matrices of a graph that can be quantized: where each stands, and how it is read.

K is the length that a product sums over, N the number of sums, D the width of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from onnx import TensorProto, helper

from torchless.quantize.attention import open_attention
from torchless.quantize.draft import Draft

Role = Literal["body", "ends", "tables"]
Way = Literal["table", "rows", "columns", ""]
FEW = 16  # rows; a table of fewer, as of segments, weighs nothing, and is read faster as it is


@dataclass(frozen=True)
class Matrix:
    """A weight that can be quantized: where it stands, how it lies, and the nodes that read it."""

    name: str
    shape: tuple[int, int]
    role: Role
    transposed: bool  # [N,K] (or an embedding's [V,D]) rather than [K,N]
    readers: tuple[Any, ...]

    @property
    def looked_up(self) -> bool:
        """Whether rows of it are looked up, by tokens or places."""
        return any(node.op_type == "Gather" for node in self.readers)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The values that are multiplied by it."""
        return tuple(dict.fromkeys(node.input[0] for node in self.readers if node.op_type != "Gather"))


@dataclass(frozen=True)
class Left:
    """A matrix that stays in float, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


def find_matrices(draft: Draft) -> tuple[list[Matrix], list[Left]]:
    """The float initializers of two or more dimensions in order: those to quantize, and the others.

    Operators that hide the product with one are taken apart first.
    """
    open_attention(draft)
    readers = draft.readers()
    matrices: list[Matrix] = []
    left: list[Left] = []
    for name, tensor in draft.tensors.items():
        shape = tuple(tensor.dims)
        if tensor.data_type != TensorProto.FLOAT or len(shape) < 2 or name not in readers:
            continue
        nodes = tuple(readers[name])
        ways = {_way(draft, node, name) for node in nodes}
        if reason := _reason_to_leave(draft, name, shape, nodes, ways):
            left.append(Left(name, shape, reason))
            continue
        role: Role = "tables" if ways == {"table"} else "body"
        if any(_at_an_end(draft, node, readers) for node in nodes):
            role = "ends"
        matrices.append(Matrix(name, (shape[0], shape[1]), role, "columns" not in ways, nodes))
    return matrices, left


def _reason_to_leave(
    draft: Draft, name: str, shape: tuple[int, ...], nodes: tuple[Any, ...], ways: set[Way]
) -> str:
    if len(shape) > 2 or 0 in shape:
        return f"it has shape {list(shape)}, not rows and columns"
    if "" in ways:
        kinds = sorted({node.op_type for node in nodes if not _way(draft, node, name)})
        return f"{' and '.join(kinds)} reads it, which has no quantized form"
    if "columns" in ways and len(ways) > 1:
        return "it is read as it lies and transposed"
    if ways == {"table"} and shape[0] < FEW:
        return f"it has {shape[0]} rows"
    return ""


def _way(draft: Draft, node: Any, name: str) -> Way:
    """How a node reads the matrix: rows by index, x times its transpose, x times it; "" for any other way."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Gather" and node.input[0] == name and attributes.get("axis", 0) == 0:
        return "table" if node.input[1] in draft.input_ranks else ""
    if len(node.input) != 2 or node.input[1] != name or node.input[0] == name:
        return ""
    if node.op_type == "MatMul":
        return "columns"
    if node.op_type == "FusedMatMul" and attributes.pop("alpha", 1.0) == 1:
        switches = {name for name, value in attributes.items() if value}
        return "rows" if switches == {"transB"} else "columns" if not switches else ""
    return ""


def _at_an_end(draft: Draft, node: Any, readers: dict[str, list[Any]]) -> bool:
    """Whether the node reads the tokens, or computes an output of the graph, a bias aside."""
    result = node.output[0]
    biased = [after.output[0] for after in readers.get(result, ()) if after.op_type == "Add"]
    return "input_ids" in node.input or any(value in draft.outputs for value in (result, *biased))
