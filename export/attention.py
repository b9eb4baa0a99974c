"""Attention in both dialects: causal over a cache for decoders, masked for encoders (Vaswani et al., 2017).

Letters as in parts.py; P is a head's size padded to what the cache's operator takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from torchless.export.builder import CONTRIB, Builder, Value
from torchless.export.parts import LOWEST, Biased, settle
from torchless.export.weights import Float, Weights

# Queries and keys, each [B,H,S,E] -> what is added to their products, [B,H,S,S].
ByContent = Callable[[Value, Value], Value]


def padded_head(size: int) -> int:
    """GroupQueryAttention takes head sizes that are multiples of 8; zeros behind a head change no product."""
    return -(-size // 8) * 8


@dataclass(frozen=True)
class DecoderInputs:
    """The graph inputs that every decoder has (docs/graph.md)."""

    input_ids: Value  # int64 [B,S]
    position_ids: Value  # int64 [B,S]
    seqlens_k: Value  # int32 [B]: tokens in the cache after this step, minus one
    total_sequence_length: Value  # int32 scalar: the largest of seqlens_k, plus one
    logits_positions: Value  # int64 [B,K]: which of the S rows are projected to the vocabulary

    @classmethod
    def declare(cls, b: Builder) -> DecoderInputs:
        return cls(
            b.input("input_ids", np.int64, ["B", "S"]),
            b.input("position_ids", np.int64, ["B", "S"]),
            b.input("seqlens_k", np.int32, ["B"]),
            b.input("total_sequence_length", np.int32, []),
            b.input("logits_positions", np.int64, ["B", "K"]),
        )


def qkv_columns(matrix: Float, heads: int, size: int) -> Float:
    """[..,3·H·E] -> [..,3·H·P]: zero columns behind each head, so that its size is a multiple of 8."""
    padded = padded_head(size)
    if padded == size:
        return matrix
    split = matrix.reshape(*matrix.shape[:-1], 3 * heads, size)
    split = np.pad(split, [(0, 0)] * (split.ndim - 1) + [(0, padded - size)])
    return split.reshape(*matrix.shape[:-1], 3 * heads * padded)


def output_rows(matrix: Float, heads: int, size: int) -> Float:
    """[H·E,D] -> [H·P,D]: zero rows where the padded heads give zeros."""
    padded = padded_head(size)
    if padded == size:
        return matrix
    split = np.pad(matrix.reshape(heads, size, -1), [(0, 0), (0, padded - size), (0, 0)])
    return split.reshape(heads * padded, -1)


def causal_attention(
    b: Builder, x: Value, qkv: tuple[Float, Float | None], out: tuple[Float, Float | None], w: Weights,
    inputs: DecoderInputs, *, heads: int, size: int, scale: float, layer: int,
) -> Biased:  # fmt: skip
    """Self-attention of S new tokens over the cache and themselves, [B,S,D] -> [B,S,D].

    qkv: weight [D,3·H·E] and bias or None; out: weight [H·E,D] and bias or None; w names them. Every decoder
    layer has the graph inputs past_key_values.{layer}.key|value [B,H,C,P] and outputs present.{layer}.key|value.
    """
    padded = padded_head(size)
    matrix = b.weight(w.name("qkv.weight"), qkv_columns(qkv[0], heads, size))
    bias = "" if qkv[1] is None else b.weight(w.name("qkv.bias"), qkv_columns(qkv[1], heads, size))
    packed = settle(b, Biased(b.op("MatMul", x, matrix), bias))  # [B,S,3HP]
    shape: list[int | str] = ["B", heads, "C", padded]
    past = [b.input(f"past_key_values.{layer}.{name}", np.float32, shape) for name in ("key", "value")]
    attend = _grouped_query if b.fused else _scattered
    mixed, *present = attend(b, packed, past, inputs, heads, padded, scale)  # [B,S,HP]
    for name, value in zip(("key", "value"), present, strict=True):
        b.output(f"present.{layer}.{name}", value, np.float32, shape)
    output = b.weight(w.name("output.weight"), output_rows(out[0], heads, size))
    return Biased(b.op("MatMul", mixed, output), "" if out[1] is None else b.weight(w.name("output.bias"), out[1]))


def _grouped_query(
    b: Builder, packed: Value, past: list[Value], inputs: DecoderInputs, heads: int, size: int, scale: float
) -> list[Value]:
    # A sink of weight exp(lowest) = 0 changes no bit, and keeps the CPU from a tiled kernel that makes int8 models
    # a quarter slower to read a prompt (onnxruntime 1.31, 1.32; docs/performance.md).
    sink = b.constant([LOWEST] * heads, np.float32)
    return b.ops(
        "GroupQueryAttention", packed, "", "", *past, inputs.seqlens_k, inputs.total_sequence_length,
        "", "", "", "", sink, outputs=3, domain=CONTRIB, num_heads=heads, kv_num_heads=heads, scale=scale,
    )  # fmt: skip


def _scattered(
    b: Builder, packed: Value, past: list[Value], inputs: DecoderInputs, heads: int, size: int, scale: float
) -> list[Value]:
    """The same of plain operators: new keys and values are scattered to their slots, later slots are masked."""
    q, k, v = _split_heads(b, packed, heads, size, parts=3)  # each [B,H,S,P]
    slots = b.once("slots")
    if slots is None:
        rows = b.op("Unsqueeze", inputs.position_ids, b.constant([1, 3], np.int64))  # [B,1,S,1]
        slots = b.once("slots", b.op("Expand", rows, b.op("Shape", k)))
        capacity = b.op("Shape", past[0], start=2, end=3)
        column = b.op("Range", _int(b, 0), b.op("Squeeze", capacity), _int(b, 1))  # [C]
        b.once("hidden", b.op("Greater", column, rows))  # [B,1,S,C]
    hidden = b.once("hidden")
    assert slots is not None and hidden is not None
    key, value = (b.op("ScatterElements", old, slots, new, axis=2) for old, new in zip(past, (k, v), strict=True))
    mixed = _weigh(b, q, key, value, scale, lambda scores: b.op("Where", hidden, _lowest(b), scores))
    return [_merge_heads(b, mixed, heads * size), key, value]


def masked_attention(
    b: Builder, x: Value, qkv: tuple[Float, Float], w: Weights, attention_mask: Value,
    *, heads: int, size: int, scale: float, attention_bias: Value | ByContent = "",
) -> Value:  # fmt: skip
    """Self-attention among the tokens that attention_mask [B,S] marks with 1, [B,S,D] -> [B,S,H·E].

    attention_bias: added to the scaled scores, [B or 1, H or 1, S, S], or a function that makes it of this
    layer's queries and keys.
    """
    matrix, bias = b.weight(w.name("qkv.weight"), qkv[0]), b.weight(w.name("qkv.bias"), qkv[1])
    product = b.op("MatMul", x, matrix)  # [B,S,3HE]
    if not b.fused:
        product = b.op("Add", product, bias)
        return _masked(b, product, attention_mask, heads, size, scale, attention_bias)
    if callable(attention_bias):  # which needs queries and keys with their bias, before the operator adds it
        product, bias = b.op("Add", product, bias), ""
    q, k, v = b.ops("Split", product, outputs=3, axis=-1, num_outputs=3)
    mask = b.once("mask") or b.once("mask", b.op("Cast", attention_mask, to=6))  # int32
    assert mask is not None
    if callable(attention_bias):
        attention_bias = attention_bias(_turn(b, q, heads, size), _turn(b, k, heads, size))
    return b.op(
        "MultiHeadAttention", q, k, v, bias, mask, attention_bias, domain=CONTRIB,
        num_heads=heads, scale=scale, mask_filter_value=LOWEST,
    )  # fmt: skip


def _masked(
    b: Builder, packed: Value, attention_mask: Value, heads: int, size: int, scale: float,
    attention_bias: Value | ByContent,
) -> Value:  # fmt: skip
    """The same of plain operators."""
    q, k, v = _split_heads(b, packed, heads, size, parts=3)
    mask = b.once("mask")
    if mask is None:
        wide = b.op("Unsqueeze", attention_mask, b.constant([1, 2], np.int64))  # [B,1,1,S]
        mask = b.once("mask", b.op("Equal", wide, _int(b, 0)))
    shift = attention_bias(q, k) if callable(attention_bias) else attention_bias

    def hide(scores: Value) -> Value:
        return b.op("Where", str(mask), _lowest(b), b.op("Add", scores, shift) if shift else scores)

    return _merge_heads(b, _weigh(b, q, k, v, scale, hide), heads * size)


def distances(b: Builder, ids: Value) -> Value:
    """int64 [S,S] for ids [B,S]: the query's place minus the key's."""
    length = b.op("Squeeze", b.op("Shape", ids, start=1, end=2))
    place = b.op("Range", _int(b, 0), length, _int(b, 1))  # [S]
    return b.op("Sub", b.op("Unsqueeze", place, b.constant([1], np.int64)), place)


def _weigh(b: Builder, q: Value, k: Value, v: Value, scale: float, mask: object) -> Value:
    assert callable(mask)
    across = b.op("Transpose", k, perm=[0, 1, 3, 2])
    scores = b.op("Mul", b.op("MatMul", q, across), b.constant(scale, np.float32))
    return b.op("MatMul", b.op("Softmax", mask(scores), axis=-1), v)


def _split_heads(b: Builder, x: Value, heads: int, size: int, *, parts: int) -> list[Value]:
    """[B,S,parts·H·P] -> parts of [B,H,S,P]."""
    return b.ops("Split", _turn(b, x, parts * heads, size), outputs=parts, axis=1, num_outputs=parts)


def _turn(b: Builder, x: Value, heads: int, size: int) -> Value:
    """[B,S,H·P] -> [B,H,S,P]."""
    apart = b.op("Reshape", x, b.constant([0, 0, heads, size], np.int64))
    return b.op("Transpose", apart, perm=[0, 2, 1, 3])


def _merge_heads(b: Builder, x: Value, width: int) -> Value:
    """[B,H,S,P] -> [B,S,H·P]."""
    return b.op("Reshape", b.op("Transpose", x, perm=[0, 2, 1, 3]), b.constant([0, 0, width], np.int64))


def _int(b: Builder, value: int) -> Value:
    return b.constant(value, np.int64)


def _lowest(b: Builder) -> Value:
    return b.constant(LOWEST, np.float32)
