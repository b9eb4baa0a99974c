"""Products whose activations are quantized in a range that was measured beforehand, as QuantizeLinear takes it.

The ranges come from onnxruntime.quantization's own collector of histograms. Its `quantize_static` is not used: it
takes and writes whole models in memory, and has one setting for all matrices.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from torchless.quantize.calibrate import Calibration
from torchless.quantize.draft import Draft
from torchless.quantize.matrices import Matrix
from torchless.quantize.recipes import Static
from torchless.quantize.weights import TINY, int8_columns

PERCENTILE = 99.999
BINS = {"percentile": 2048, "entropy": 128}  # onnxruntime's own choices

Ends = tuple[float, float]


def ranges(calibration: Calibration, values: Sequence[str], scheme: Static) -> dict[str, Ends]:
    """The lowest and the highest number of each value that are to be told apart; 0 is always between them."""
    if scheme.range == "minmax":
        return {name: (span.low, span.high) for name, span in calibration.spans(values).items()}
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(scheme.range, scheme.symmetric, BINS[scheme.range], 128, PERCENTILE, "same")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for seen in calibration(values):
            collector.collect(seen)
        result = collector.compute_collection_result()
    return {name: (min(0.0, float(low)), max(0.0, float(high))) for name, (low, high, *_) in result.items()}


def grid(ends: Ends, symmetric: bool) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Scale and zero point: uint8 from the lowest to the highest, or int8 around 0 (-128 is reached by none)."""
    low, high = ends
    if symmetric:
        return np.array(max(-low, high, 127 * TINY) / 127, np.float32), np.array(0, np.int8)
    scale = max((high - low) / 255, TINY)
    return np.array(scale, np.float32), np.array(np.clip(np.rint(-low / scale), 0, 255), np.uint8)


def to_static(draft: Draft, matrix: Matrix, scheme: Static, found: dict[str, Ends]) -> None:
    """y = x as integers @ int8 * scale, each through QuantizeLinear and DequantizeLinear."""
    array = draft.array(matrix.name)
    codes, scale = int8_columns(matrix.name, array.T if matrix.transposed else array)
    weight = draft.add(f"{matrix.name}.int8", codes)
    scales = draft.add(f"{matrix.name}.int8.scale", scale)
    zeros = draft.add(f"{matrix.name}.int8.zero", np.zeros(len(scale), np.int8))
    for node in matrix.readers:
        x, y = node.input[0], node.output[0]
        step, middle = grid(found[x], scheme.symmetric)
        pair = [draft.add(f"{x}.step", step), draft.add(f"{x}.zero", middle)]
        draft.before_readers(
            x,
            [
                _node("QuantizeLinear", [x, *pair], f"{x}.codes"),
                _node("DequantizeLinear", [f"{x}.codes", *pair], f"{x}.rounded"),
            ],
        )
        draft.replace(
            node,
            [
                _node("DequantizeLinear", [weight, scales, zeros], f"{y}.weight", axis=1),
                _node("MatMul", [f"{x}.rounded", f"{y}.weight"], y),
            ],
        )


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **attributes)
