"""How many bytes of an ONNX graph's weights one token reads."""

from __future__ import annotations

import math
from pathlib import Path

import onnx

PICKS_ROWS = {"Gather", "GatherBlockQuantized"}


def read_by_a_token(path: Path) -> int:
    """Bytes of all initializers but those of which only rows are picked: tables of embeddings."""
    graph = onnx.load(str(path), load_external_data=False).graph
    whole = {name for node in graph.node if node.op_type not in PICKS_ROWS for name in node.input}
    return sum(size_of(tensor) for tensor in graph.initializer if tensor.name in whole)


def size_of(tensor: onnx.TensorProto) -> int:
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    bits = 4 if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) else 0
    return (
        math.prod(tensor.dims) * (bits or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize) // 8
    )
