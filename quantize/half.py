"""Turns a float32 graph into float16, for GPUs.

onnxruntime.transformers.float16 does this too, for models whose weights fit into the protobuf: it cuts off a weight
that is too large without a word, makes the nearest to zero larger, and keeps Max in float32 between two casts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from torchless.errors import QuantizationError
from torchless.quantize.draft import Draft
from torchless.quantize.weights import check_finite

LARGEST = float(np.finfo(np.float16).max)  # 65,504
LEAST = np.finfo(np.float16).tiny  # of full precision, 6e-5
BOUNDLESS = float(np.finfo(np.float32).max)  # what a mask, or a number that bounds nothing, is written as
CACHE = "present."


def to_half(draft: Draft) -> None:
    """Every float of a draft that is still as it was exported becomes float16: weights, constants, caches.

    Outputs stay float32 by a Cast at the very end, all but the caches; ids stay as they are. What is added to the
    draft from now on becomes float16 as well.
    """
    draft.convert = half
    for value in (*draft.model.graph.input, *draft.model.graph.output):
        stays = value.name in draft.outputs and not value.name.startswith(CACHE)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and not stays:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in draft.nodes:
        _convert(node)
    for value in draft.model.graph.output:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            _cast_at_the_end(draft, value.name)


def half(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """float32 -> float16, other arrays as they are; |array - float16| <= 2**-11 |array|, or 2**-25 below 6e-5.

    The largest float32 there is becomes the largest float16, and so does its negative, which hides what is masked.
    Any other weight too large for float16 is a QuantizationError that bears the name, as are NaN and infinity. A
    scalar, which may be there to keep a quotient finite, does not become zero.
    """
    if array.dtype != np.float32:
        return array
    check_finite(name, array)
    with np.errstate(over="ignore"):
        made = np.asarray(array.astype(np.float16))
    boundless = np.abs(array) == BOUNDLESS
    made[boundless] = np.copysign(LARGEST, array[boundless])
    if np.isinf(made).any():
        most = float(np.abs(array).max())
        raise QuantizationError(
            f"{name} holds {most:,.0f}, float16 ends at {LARGEST:,.0f}: use a recipe that computes in float32"
        )
    if not array.ndim and array and abs(array) < LEAST:
        made[...] = np.copysign(LEAST, array)
    return made


def _convert(node: Any) -> None:
    """A node's own floats: the type that it casts to, and the score that stands for minus infinity."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif abs(attribute.f) > LARGEST:
            attribute.f = np.copysign(LARGEST, attribute.f)


def _cast_at_the_end(draft: Draft, output: str) -> None:
    inside = f"{output}.float16"
    for node in draft.nodes:
        for values in (node.input, node.output):
            for index, value in enumerate(values):
                if value == output:
                    values[index] = inside
    draft.outputs.add(inside)  # what computes it still stands at the graph's end
    cast = helper.make_node("Cast", [inside], [output], name=f"{output}/Cast", to=TensorProto.FLOAT)
    draft.nodes.append(cast)
