"""Finds the matrices of a graph and swaps the operators that read them for quantized ones; says what it did.

K is the length that a product sums over, N the number of sums, D the width of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper

from torchless.quantize.draft import CONTRIB, Draft
from torchless.quantize.recipes import Blocks, Columns, Recipe, Scheme
from torchless.quantize.weights import TINY, Float, block_size, blocks, int8_columns

Role = Literal["body", "ends", "tables"]
Way = Literal["table", "rows", "columns", ""]


@dataclass(frozen=True)
class Matrix:
    """A weight that can be quantized: where it stands, how it lies, and the nodes that read it."""

    name: str
    shape: tuple[int, int]
    role: Role
    transposed: bool  # [N,K] (or an embedding's [V,D]) rather than [K,N]
    readers: tuple[Any, ...]


@dataclass(frozen=True)
class Left:
    """A matrix that stays in float, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Report:
    """What `rewrite` did: the scheme of every matrix that was rewritten, and those left in float."""

    done: tuple[tuple[Matrix, Scheme], ...]
    left: tuple[Left, ...]

    @property
    def signed_int8(self) -> bool:
        return any(isinstance(scheme, Columns) for _, scheme in self.done)


def rewrite(draft: Draft, recipe: Recipe) -> Report:
    """Quantize every matrix of the draft as the recipe says."""
    matrices, left = find_matrices(draft)
    done: list[tuple[Matrix, Scheme]] = []
    for matrix in matrices:
        scheme: Scheme = getattr(recipe, matrix.role)
        if isinstance(scheme, Blocks):
            scheme = to_blocks(draft, matrix, scheme)
        else:
            to_columns(draft, matrix)
        done.append((matrix, scheme))
    return Report(tuple(done), tuple(left))


def find_matrices(draft: Draft) -> tuple[list[Matrix], list[Left]]:
    """The float initializers of two or more dimensions in order: those to quantize, and the others."""
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
    return ""


def to_columns(draft: Draft, matrix: Matrix) -> None:
    """Products with int8 columns: y = largest * (x / largest as uint8 around 128) @ int8 * scale.

    `largest` [..,1] is each row's own, so a row's result does not depend on the rows beside it. Rows that
    several matrices read are quantized once. A row of zeros gives zeros; one of NaN, or with an infinity,
    gives nothing finite. What signed weights ask of the processor is in torchless.exactness.
    """
    array = draft.array(matrix.name)
    codes, scale = int8_columns(matrix.name, array.T if matrix.transposed else array)
    weight = draft.add(f"{matrix.name}.int8", codes)
    scales = draft.add(f"{matrix.name}.int8.scale", scale)
    step = draft.add("int8.step", np.float32(1 / 127))
    middle = draft.add("uint8.middle", np.uint8(128))
    for node in matrix.readers:
        x, y = node.input[0], node.output[0]
        draft.before_readers(x, _quantize_rows(draft, x))
        inputs = [f"{x}.uint8", weight, step, scales, middle]
        unscaled = _node("MatMulIntegerToFloat", inputs, f"{y}.unscaled", domain=CONTRIB)
        draft.replace(node, [unscaled, _node("Mul", [f"{y}.unscaled", f"{x}.largest"], y)])


def _quantize_rows(draft: Draft, x: str) -> Iterator[Any]:
    """x [..,K] -> `x.largest` [..,1], its rows' largest magnitudes, and `x.uint8`, x/largest in 127 steps."""
    last, tiny = draft.add("last_axis", np.array([-1])), draft.add("tiny", np.float32(TINY))
    yield _node("Abs", [x], f"{x}.magnitude")
    yield _node("ReduceMax", [f"{x}.magnitude", last], f"{x}.maximum", keepdims=1)
    yield _node("Max", [f"{x}.maximum", tiny], f"{x}.largest")
    yield _node("Div", [x, f"{x}.largest"], f"{x}.relative")
    yield _node("QuantizeLinear", [f"{x}.relative", "int8.step", "uint8.middle"], f"{x}.uint8")


def to_blocks(draft: Draft, matrix: Matrix, scheme: Blocks) -> Blocks:
    """Products and embeddings with one matrix of blocks, read by both as it lies. Returns the scheme used."""
    array = draft.array(matrix.name)
    rows: Float = array if matrix.transposed else np.ascontiguousarray(array.T)
    count, length = rows.shape
    size = block_size(length, scheme.size)
    codes, scale = blocks(matrix.name, rows, scheme.bits, size)
    weight = draft.add(f"{matrix.name}.q{scheme.bits}", codes)
    scales = draft.add(f"{weight}.scale", scale)
    for node in matrix.readers:
        if node.op_type == "Gather":
            # The same bytes again: scales with as many dimensions as the operator's codes have, and codes under a
            # name of their own, since a product's are packed at load and would all stay in memory for the lookup.
            each = draft.add_view(f"{scales}.gather", (*scale.shape, 1), of=scales)
            table = draft.add_view(f"{weight}.gather", codes.shape, of=weight)
            draft.replace(node, _gather(draft, node, table, each, length, scheme.bits, size))
            continue
        product = _node(
            "MatMulNBits", [node.input[0], weight, scales], node.output[0], domain=CONTRIB,
            K=length, N=count, bits=scheme.bits, block_size=size, accuracy_level=4,  # 4: integer arithmetic
        )  # fmt: skip
        draft.replace(node, [product])
    return Blocks(scheme.bits, size)


def _gather(draft: Draft, node: Any, weight: str, scales: str, length: int, bits: int, size: int) -> Iterator[Any]:
    """ids [..] -> rows [..,D]: the operator gives them as blocks [..,D/size,size]."""
    ids, y = node.input[1], node.output[0]
    padded = -(-length // size) * size
    rank = draft.input_ranks[ids]
    shape = draft.add(f"join_blocks.{rank}.{padded}", np.array([0] * rank + [padded]))
    yield _node(
        "GatherBlockQuantized", [weight, ids, scales], f"{y}.blocks", domain=CONTRIB,
        bits=bits, block_size=size, gather_axis=0, quantize_axis=2,
    )  # fmt: skip
    yield _node("Reshape", [f"{y}.blocks", shape], y if padded == length else f"{y}.padded")
    if padded > length:
        bounds = [draft.add(f"slice.{value}", np.array([value])) for value in (0, length, -1)]
        yield _node("Slice", [f"{y}.padded", *bounds], y)


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


def _node(kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", domain=domain, **attributes)
