"""What models are built of: embedding, norm, linear, attention, feed-forward, each in both dialects.

Letters: B rows of the batch, S tokens given, C slots of the cache, H heads, E size of a head, D hidden size,
K rows asked for, V vocabulary. Biases stay pending until an operator that follows can take them in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from torchless.errors import ExportError
from torchless.export.builder import CONTRIB, Builder, Value
from torchless.export.weights import Float, Weights

LOWEST = float(np.finfo(np.float32).min)


@dataclass
class Biased:
    """product + bias, not yet added: an activation or a sum that follows takes the bias along."""

    product: Value
    bias: Value = ""


def settle(b: Builder, x: Biased) -> Value:
    """The plain value, with the bias added now."""
    return b.op("Add", x.product, x.bias) if x.bias else x.product


def add(b: Builder, x: Value, y: Value | Biased) -> Value:
    """x + y, with the bias of y, in one operator.

    Not SkipLayerNormalization, which would take the norm along: its kernel for the CPU is up to a quarter slower
    than the two (onnxruntime 1.32), and half as exact where activations are large.
    """
    branch = y if isinstance(y, Biased) else Biased(y)
    return b.op("Sum", x, branch.product, *([branch.bias] if branch.bias else []))


def embed(b: Builder, name: str, table: Float, ids: Value) -> Value:
    """Rows of table [V,D] by ids [B,S] -> [B,S,D]."""
    return b.op("Gather", b.weight(name, table), ids, axis=0)


def norm(b: Builder, x: Value, w: Weights, size: int, eps: float, *, bias: bool = True) -> Value:
    """Layer normalization over the last axis (Ba et al., 2016), [..,D] -> [..,D]."""
    gamma = b.weight(w.name("weight"), w.shaped("weight", size))
    beta = b.weight(w.name("bias"), w.shaped("bias", size)) if bias else ""
    return b.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=eps)


def rms_norm(b: Builder, x: Value, w: Weights, size: int, eps: float) -> Value:
    """Root-mean-square normalization over the last axis (Zhang and Sennrich, 2019), [..,D] -> [..,D]."""
    return rms_norm_of(b, x, w.name("weight"), w.shaped("weight", size), eps)


def rms_norm_of(b: Builder, x: Value, name: str, scale: Float, eps: float) -> Value:
    """The same, scale [D] at hand: x / sqrt(mean(x^2) + eps) * scale, which onnxruntime makes one operator."""
    square = b.op("ReduceMean", b.op("Pow", x, _number(b, 2)), b.constant([-1], np.int64), keepdims=1)
    root = b.op("Sqrt", b.op("Add", square, _number(b, eps)))
    return b.op("Mul", b.op("Div", x, root), b.weight(name, scale))


def linear(b: Builder, x: Value, w: Weights, inputs: int, outputs: int, *, bias: bool | None = None) -> Biased:
    """torch's Linear: weight [outputs, inputs], transposed here, once. [..,inputs] -> [..,outputs].

    bias: whether the config gives it one; by default it has what the checkpoint has.
    """
    matrix = b.weight(w.name("weight"), w.shaped("weight", outputs, inputs).T)
    has_bias = "bias" in w if bias is None else bias
    shift = b.weight(w.name("bias"), w.shaped("bias", outputs)) if has_bias else ""
    return Biased(b.op("MatMul", x, matrix), shift)


def conv1d(b: Builder, x: Value, w: Weights, inputs: int, outputs: int, *, bias: bool = True) -> Biased:
    """GPT's Conv1D: a linear layer whose weight is stored [inputs, outputs]. [..,inputs] -> [..,outputs]."""
    matrix = b.weight(w.name("weight"), w.shaped("weight", inputs, outputs))
    shift = b.weight(w.name("bias"), w.shaped("bias", outputs)) if bias else ""
    return Biased(b.op("MatMul", x, matrix), shift)


def project(b: Builder, x: Value, name: str, table: Float) -> Value:
    """x [..,D] times the transpose of table [V,D] -> [..,V]; a tied head reads the embedding's own table."""
    matrix = b.weight(name, table)
    if b.fused:
        return b.op("FusedMatMul", x, matrix, domain=CONTRIB, transB=1)
    return b.op("MatMul", x, b.op("Transpose", matrix, perm=[1, 0]))


def pick_rows(b: Builder, x: Value, positions: Value) -> Value:
    """x [B,S,D] at positions [B,K] -> [B,K,D]."""
    return b.op("GatherND", x, b.op("Unsqueeze", positions, b.constant([2], np.int64)), batch_dims=1)


def activate(b: Builder, x: Biased, name: str) -> Value:
    """The activation that Hugging Face knows by this name, [..,N] -> [..,N]."""
    if name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise ExportError(f"config.json: the activation {name!r} is not supported (supported: {known})")
    if b.fused and name in TANH_GELUS:
        return b.op("FastGelu", x.product, x.bias, domain=CONTRIB)
    if b.fused and name in ERF_GELUS and x.bias:
        return b.op("BiasGelu", x.product, x.bias, domain=CONTRIB)
    return ACTIVATIONS[name](b, settle(b, x))


def _number(b: Builder, value: float) -> Value:
    return b.constant(value, np.float32)


def _erf_gelu(b: Builder, x: Value) -> Value:
    """x/2 (1 + erf(x / sqrt 2)) (Hendrycks and Gimpel, 2016)."""
    erf = b.op("Erf", b.op("Div", x, _number(b, 2**0.5)))
    return b.op("Mul", b.op("Mul", x, _number(b, 0.5)), b.op("Add", erf, _number(b, 1)))


def _tanh_gelu(b: Builder, x: Value) -> Value:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the same paper's approximation."""
    cube = b.op("Mul", b.op("Mul", x, x), b.op("Mul", x, _number(b, 0.044715)))
    tanh = b.op("Tanh", b.op("Mul", b.op("Add", x, cube), _number(b, (2 / np.pi) ** 0.5)))
    return b.op("Mul", b.op("Mul", x, _number(b, 0.5)), b.op("Add", tanh, _number(b, 1)))


def _sigmoid_times(alpha: float) -> Callable[[Builder, Value], Value]:
    def build(b: Builder, x: Value) -> Value:
        inner = x if alpha == 1 else b.op("Mul", x, _number(b, alpha))
        return b.op("Mul", x, b.op("Sigmoid", inner))

    return build


def _relu_squared(b: Builder, x: Value) -> Value:
    y = b.op("Relu", x)
    return b.op("Mul", y, y)


def _mish(b: Builder, x: Value) -> Value:
    return b.op("Mul", x, b.op("Tanh", b.op("Softplus", x)))


TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh")
ERF_GELUS = ("gelu", "gelu_python")
ACTIVATIONS: dict[str, Callable[[Builder, Value], Value]] = {
    **dict.fromkeys(TANH_GELUS, _tanh_gelu),
    **dict.fromkeys(ERF_GELUS, _erf_gelu),
    "gelu_10": lambda b, x: b.op("Clip", _erf_gelu(b, x), _number(b, -10), _number(b, 10)),
    "leaky_relu": lambda b, x: b.op("LeakyRelu", x, alpha=0.01),
    "linear": lambda b, x: x,
    "mish": _mish,
    "quick_gelu": _sigmoid_times(1.702),
    "relu": lambda b, x: b.op("Relu", x),
    "relu2": _relu_squared,
    "relu6": lambda b, x: b.op("Clip", x, _number(b, 0), _number(b, 6)),
    "sigmoid": lambda b, x: b.op("Sigmoid", x),
    "silu": _sigmoid_times(1),
    "swish": _sigmoid_times(1),
    "tanh": lambda b, x: b.op("Tanh", x),
}
