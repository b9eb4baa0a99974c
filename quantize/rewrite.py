"""Swaps the operators that read a graph's matrices for quantized ones, and says what it did.

K is the length that a product sums over, N the number of sums, D the width of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from onnx import helper

from torchless.errors import QuantizationError
from torchless.quantize.calibrate import Calibration
from torchless.quantize.columns import steady_ends, to_columns
from torchless.quantize.draft import CONTRIB, Draft
from torchless.quantize.gptq import gptq
from torchless.quantize.half import to_half
from torchless.quantize.hqq import hqq
from torchless.quantize.matrices import Left, Matrix, find_matrices
from torchless.quantize.migrate import migrate
from torchless.quantize.recipes import Blocks, Columns, Keep, Recipe, Scheme, Static
from torchless.quantize.static import Ends, ranges, to_static
from torchless.quantize.weights import Float, block_size, blocks

MOMENTS = 1 << 28  # bytes; texts are read once more for what does not fit


@dataclass(frozen=True)
class Report:
    """What `rewrite` did: the scheme of every matrix that was rewritten, and those left in float."""

    done: tuple[tuple[Matrix, Scheme], ...]
    left: tuple[Left, ...]

    @property
    def signed_int8(self) -> bool:
        return any(isinstance(scheme, (Columns, Static)) for _, scheme in self.done)


def rewrite(draft: Draft, recipe: Recipe, calibration: Calibration) -> Report:
    """Quantize every matrix of the draft as the recipe says.

    Raises QuantizationError for an exception that fits no matrix by its name, or none by its scheme.
    """
    _check_exceptions(recipe, *find_matrices(draft))
    if recipe.floats == 16:
        to_half(draft)
    migrate(draft, recipe, calibration)
    matrices, left = find_matrices(draft)
    schemes = {matrix.name: recipe.scheme(matrix.name, matrix.role) for matrix in matrices}
    found: dict[Static | Columns, dict[str, Ends]] = {}
    for scheme in schemes.values():
        inputs = [x for matrix in matrices if schemes[matrix.name] == scheme for x in matrix.inputs]
        if isinstance(scheme, Static) and scheme not in found:
            found[scheme] = ranges(calibration, inputs, scheme)
        elif isinstance(scheme, Columns) and scheme not in found:
            found[scheme] = steady_ends(draft, calibration.spans(inputs), scheme) if scheme.steady else {}
    mended = [one for one in matrices if _mends(one, schemes[one.name]) and calibration.text]
    moments: dict[str, Float] = {}
    done: list[tuple[Matrix, Scheme]] = []
    for matrix in matrices:
        scheme = schemes[matrix.name]
        if isinstance(scheme, Keep):
            left.append(Left(matrix.name, matrix.shape, "the recipe says so"))
            continue
        if isinstance(scheme, Blocks):
            seen = None
            if any(matrix is one for one in mended):
                if not moments.keys() >= set(matrix.inputs):
                    moments = calibration.moments(_as_many_as_fit(mended, matrix))
                seen = np.sum([moments[x] for x in matrix.inputs], axis=0)
            scheme = to_blocks(draft, matrix, scheme, seen)
        elif isinstance(scheme, Columns):
            to_columns(draft, matrix, found[scheme])
        else:
            to_static(draft, matrix, scheme, found[scheme])
        done.append((matrix, scheme))
    return Report(tuple(done), tuple(left))


def _check_exceptions(recipe: Recipe, matrices: Sequence[Matrix], left: Sequence[Left]) -> None:
    names = [matrix.name for matrix in matrices] + [one.name for one in left]
    for pattern in recipe.matrices:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise QuantizationError(
                f"the recipe {recipe.name} has a scheme for {pattern!r}, and no matrix has such a name: "
                "torchless sensitivity tells the names"
            )
    for one in matrices:
        scheme = recipe.scheme(one.name, one.role)
        if isinstance(scheme, (Columns, Static)) and one.looked_up:
            raise QuantizationError(
                f"the recipe {recipe.name} has {type(scheme).__name__.lower()} for {one.name}: an embedding can be "
                "blocks or keep"
            )


def _mends(matrix: Matrix, scheme: Scheme) -> bool:
    return isinstance(scheme, Blocks) and scheme.method == "gptq" and matrix.role == "body"


def _as_many_as_fit(matrices: Sequence[Matrix], first: Matrix) -> list[str]:
    """What is multiplied by `first` and by those after it, as long as a K x K float of each fits into memory."""
    inputs: dict[str, int] = {}
    for matrix in matrices[next(i for i, one in enumerate(matrices) if one is first) :]:
        length = matrix.shape[1] if matrix.transposed else matrix.shape[0]
        more = inputs | {x: 4 * length**2 for x in matrix.inputs}
        if inputs and sum(more.values()) > MOMENTS:
            break
        inputs = more
    return list(inputs)


def to_blocks(draft: Draft, matrix: Matrix, scheme: Blocks, moments: Float | None = None) -> Blocks:
    """Products and embeddings with one matrix of blocks, read by both as it lies. Returns the scheme used.

    moments: of what is multiplied by it, the mean of x xᵀ [K,K]; without it "gptq" is "hqq". Where tokens are
    looked up, both are "search".
    """
    array = draft.array(matrix.name)
    rows: Float = array if matrix.transposed else np.ascontiguousarray(array.T)
    count, length = rows.shape
    size = block_size(length, scheme.size)
    method = scheme.method
    if method in ("gptq", "hqq") and matrix.looked_up:
        method = "search"
    elif method == "gptq" and moments is None:
        method = "hqq"
    zero = None
    if method == "gptq" and moments is not None:
        codes, scale, zero = gptq(matrix.name, rows, moments, scheme.bits, size)
    elif method == "hqq":
        codes, scale, zero = hqq(matrix.name, rows, scheme.bits, size)
    else:
        codes, scale = blocks(matrix.name, rows, scheme.bits, size, search=method != "nearest")
    weight = draft.add(f"{matrix.name}.q{scheme.bits}", codes)
    scales = draft.add(f"{weight}.scale", scale)
    zeros = [] if zero is None else [draft.add(f"{weight}.zero", zero)]
    level = 4 if draft.convert is None else 0  # 4: activations may be rounded to integers, which GPUs never do
    for node in matrix.readers:
        if node.op_type == "Gather":
            # The same bytes again: scales with as many dimensions as the operator's codes have, and codes under a
            # name of their own, since a product's are packed at load and would all stay in memory for the lookup.
            each = draft.add_view(f"{scales}.gather", (*scale.shape, 1), of=scales)
            table = draft.add_view(f"{weight}.gather", codes.shape, of=weight)
            draft.replace(node, _gather(draft, node, table, each, length, scheme.bits, size))
            continue
        product = _node(
            "MatMulNBits", [node.input[0], weight, scales, *zeros], node.output[0], domain=CONTRIB,
            K=length, N=count, bits=scheme.bits, block_size=size, accuracy_level=level,
        )  # fmt: skip
        draft.replace(node, [product])
    return replace(scheme, size=size, method=method)


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


def _node(kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", domain=domain, **attributes)
