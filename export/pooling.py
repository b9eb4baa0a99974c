"""From token vectors to one sentence vector, inside the graph (Reimers and Gurevych, 2019)."""

from __future__ import annotations

import numpy as np

from torchless.errors import ExportError
from torchless.export.builder import Builder, Value
from torchless.hub_config import MODES
from torchless.manifest import Pooling


def pool(b: Builder, x: Value, mask: Value, pooling: Pooling) -> Value:
    """x [B,S,D], mask int64 [B,S] -> [B,D]."""
    if pooling.mode == "cls":
        sentence = b.op("Gather", x, b.constant(0, np.int64), axis=1)
    elif pooling.mode == "mean":
        weight = b.op("Unsqueeze", b.op("Cast", mask, to=1), b.constant([2], np.int64))  # [B,S,1]
        axis = b.constant([1], np.int64)
        total = b.op("ReduceSum", b.op("Mul", x, weight), axis, keepdims=0)
        count = b.op("ReduceSum", weight, axis, keepdims=0)
        sentence = b.op("Div", total, b.op("Max", count, b.constant(1e-9, np.float32)))
    elif pooling.mode == "max":
        padding = b.op("Not", b.op("Cast", b.op("Unsqueeze", mask, b.constant([2], np.int64)), to=9))  # [B,S,1]
        shown = b.op("Where", padding, b.constant(np.finfo(np.float32).min, np.float32), x)
        sentence = b.op("ReduceMax", shown, b.constant([1], np.int64), keepdims=0)
    elif pooling.mode == "lasttoken":
        count = b.op("ReduceSum", mask, b.constant([1], np.int64), keepdims=1)  # [B,1]
        sentence = b.op("GatherND", x, b.op("Sub", count, b.constant(1, np.int64)), batch_dims=1)
    else:
        raise ExportError(f"the pooling {pooling.mode!r} is not supported (supported: {', '.join(MODES)})")
    if not pooling.normalize:
        return sentence
    length = b.op("ReduceL2", sentence, b.constant([1], np.int64), keepdims=1)
    return b.op("Div", sentence, b.op("Max", length, b.constant(1e-12, np.float32)))
