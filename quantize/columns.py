"""Products of uint8 rows and int8 columns, summed as integers: y = x as uint8 @ int8 * scales.

What signed weights ask of the processor is in torchless.exactness.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import helper

from torchless.quantize.attention import behind, close_attention
from torchless.quantize.calibrate import Span
from torchless.quantize.draft import CONTRIB, Draft
from torchless.quantize.matrices import Matrix
from torchless.quantize.recipes import Columns
from torchless.quantize.static import Ends, grid
from torchless.quantize.weights import TINY, int8_columns

MARGIN = 1.1  # a measured range is widened by this, for texts that go further than those measured
# An activation that never falls below a little leaves more of the 256 codes to what is above zero.
FLOORS = {"BiasGelu": -0.1701, "FastGelu": -0.1701, "Gelu": -0.1701, "Relu": 0.0}
BELOW_ZERO = 32  # codes for what a GELU has below zero, fine enough for rows whose largest value is above 0.7


def steady_ends(draft: Draft, spans: Mapping[str, Span], scheme: Columns) -> dict[str, Ends]:
    """The measured ranges that are to be used, widened: of the values whose rows are alike."""
    found = {}
    for name, span in spans.items():
        low, high = span.low * MARGIN, span.high * MARGIN
        if (high - low) / 255 <= scheme.steady * span.row / _steps(_floor(draft, name)):
            found[name] = (low, high)
    return found


def to_columns(draft: Draft, matrix: Matrix, steady: Mapping[str, Ends]) -> None:
    """Swap a matrix's products. steady: of what it reads, the values that have one range, and that range.

    Every other row is scaled by itself, so its result does not depend on the rows beside it. Rows that several
    matrices read are quantized once. A row of zeros gives zeros; one of NaN, or with an infinity, nothing finite.
    """
    array = draft.array(matrix.name)
    codes, scale = int8_columns(matrix.name, array.T if matrix.transposed else array)
    weight = draft.add(f"{matrix.name}.int8", codes)
    scales = draft.add(f"{matrix.name}.int8.scale", scale)
    for i, node in enumerate(matrix.readers):
        x, y = node.input[0], node.output[0]
        # Without the weights' zero, onnxruntime before 1.25 crashes in the precise mode, which moves each one.
        zero_point = draft.add(f"{matrix.name}.int8.zero.{i}", np.int8(0))
        if i:  # a name a product: onnxruntime's precise mode would convert one that several read twice, and fail
            weight = draft.add_view(f"{matrix.name}.int8.{i}", codes.shape, of=f"{matrix.name}.int8")
        if x in steady:
            step, zero = grid(steady[x], symmetric=False)
            pair = [draft.add(f"{x}.step", step), draft.add(f"{x}.zero", zero)]
            draft.before_readers(x, [_node("QuantizeLinear", [x, *pair], f"{x}.fixed.uint8")])
            bias = take_bias(draft, y)
            inputs = [f"{x}.fixed.uint8", weight, pair[0], scales, pair[1], zero_point, *([bias] if bias else [])]
            if bias and close_attention(draft, node, inputs):
                continue
            draft.replace(node, [_node("MatMulIntegerToFloat", inputs, y, domain=CONTRIB)])
            continue
        floor = _floor(draft, x)
        steps = _steps(floor)
        row_step = draft.add(f"uint8.step.{steps}", np.float32(1 / steps))
        middle = draft.add(f"uint8.zero.{steps}", np.uint8(128 if floor is None else 255 - steps))
        draft.before_readers(x, _quantize_rows(draft, x, floor, row_step, middle))
        inputs = [f"{x}.uint8", weight, row_step, scales, middle, zero_point]
        unscaled = _node("MatMulIntegerToFloat", inputs, f"{y}.unscaled", domain=CONTRIB)
        draft.replace(node, [unscaled, _node("Mul", [f"{y}.unscaled", f"{x}.largest"], y)])


def _quantize_rows(draft: Draft, x: str, floor: float | None, step: str, middle: str) -> Iterator[Any]:
    """x [..,K] -> `x.largest` [..,1], and `x.uint8`, x in steps of which a row's largest has `_steps`.

    floor: where x never falls below it, a row's largest value decides, else its largest magnitude.
    """
    last = draft.add("last_axis", np.array([-1]))
    least = draft.add("tiny", np.float32(TINY))
    yield _node("ReduceMax", [x, last], f"{x}.maximum", keepdims=1)
    if floor is None:
        yield _node("ReduceMin", [x, last], f"{x}.minimum", keepdims=1)
        yield _node("Neg", [f"{x}.minimum"], f"{x}.depth")
        yield _node("Max", [f"{x}.maximum", f"{x}.depth", least], f"{x}.largest")
    else:
        if floor:  # what is below zero must not need more than its codes
            least = draft.add("gelu.least", np.float32(-floor / BELOW_ZERO * (255 - BELOW_ZERO)))
        yield _node("Max", [f"{x}.maximum", least], f"{x}.largest")
    yield _node("Div", [x, f"{x}.largest"], f"{x}.relative")
    yield _node("QuantizeLinear", [f"{x}.relative", step, middle], f"{x}.uint8")


def _steps(floor: float | None) -> int:
    """From zero to a row's largest value."""
    return 127 if floor is None else 255 - BELOW_ZERO if floor else 255


def _floor(draft: Draft, x: str) -> float | None:
    kind = next((node.op_type for node in draft.nodes if x in node.output), "")
    return FLOORS.get(kind)


def take_bias(draft: Draft, product: str) -> str:
    """The bias that the only reader of a product adds, taken from it; "" where there is none to take.

    The integer product adds it in passing. The reader is changed, and gives what it gave before.
    """
    readers = draft.readers().get(product, [])
    if len(readers) != 1 or product in draft.outputs:
        return ""
    (reader,) = readers
    if reader.op_type in ("BiasGelu", "FastGelu") and len(reader.input) == 2 and reader.input[1]:
        bias = reader.input.pop()
        reader.op_type = "Gelu" if reader.op_type == "BiasGelu" else "FastGelu"
        return str(bias)
    if reader.op_type == "Sum" and len(reader.input) == 3 and reader.input[2] in draft.tensors:
        return str(reader.input.pop())
    if (found := behind(draft, product)) and found[1].input[3]:
        bias, found[1].input[3] = found[1].input[3], ""
        return str(bias)
    return ""


def _node(kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", domain=domain, **attributes)
