"""Attention in both dialects: causal over a cache for decoders, masked for encoders (Vaswani et al., 2017).

Letters as in parts.py; P is a head's size padded to what the cache's operator takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from torchless.export.builder import CONTRIB, Builder, Value
from torchless.export.parts import LOWEST, Biased, rms_norm_of, settle
from torchless.export.rotary import Rotary
from torchless.export.weights import Float, Weights

# Queries and keys, each [B,H,S,E] -> what is added to their products, [B,H,S,S].
ByContent = Callable[[Value, Value], Value]


def padded_head(size: int, *, rotary: bool = False) -> int:
    """GroupQueryAttention takes head sizes that are multiples of 8, of 16 where it turns them by position.

    Zeros behind a head, or behind each of the halves that turn, change no product.
    """
    step = 16 if rotary else 8
    return -(-size // step) * step


@dataclass(frozen=True)
class Heads:
    """How queries, keys and values are cut: `query // kv` heads of queries share one of keys and values.

    rotary: positions that turn queries and keys. window: how many tokens a query sees, itself included; None for
    all. norms: scales [E] and epsilon of root-mean-square norms over each head of queries and of keys.
    """

    query: int
    size: int  # E
    kv: int
    scale: float
    rotary: Rotary | None = None
    window: int | None = None
    norms: tuple[Float, Float, float] | None = None

    @property
    def padded(self) -> int:
        return padded_head(self.size, rotary=self.rotary is not None)

    def pad(self, array: Float, *, turned: bool = False) -> Float:
        """[..,heads·E] -> [..,heads·P]; what is turned is padded behind each half."""
        if self.padded == self.size:
            return array
        halves = 2 if turned and self.rotary is not None else 1
        split = array.reshape(*array.shape[:-1], -1, self.size // halves)
        split = np.pad(split, [(0, 0)] * (split.ndim - 1) + [(0, (self.padded - self.size) // halves)])
        return split.reshape(*array.shape[:-1], -1)

    def pad_columns(self, matrix: Float) -> Float:
        """Queries, keys and values side by side, [..,(H+2·KV)·E] -> [..,(H+2·KV)·P]."""
        turned = (self.query + self.kv) * self.size
        parts = self.pad(matrix[..., :turned], turned=True), self.pad(matrix[..., turned:])
        return np.concatenate(parts, axis=-1)


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


def causal_attention(
    b: Builder, x: Value, qkv: tuple[Float, Float | None], out: tuple[Float, Float | None], w: Weights,
    inputs: DecoderInputs, heads: Heads, *, layer: int,
) -> Biased:  # fmt: skip
    """Self-attention of S new tokens over the cache and themselves, [B,S,D] -> [B,S,D].

    qkv: weight [D,(H+2·KV)·E] and bias or None; out: weight [H·E,D] and bias or None; w names them. Every decoder
    layer has the graph inputs past_key_values.{layer}.key|value [B,KV,C,P] and outputs present.{layer}.key|value.
    """
    matrix = b.weight(w.name("qkv.weight"), heads.pad_columns(qkv[0]))
    bias = "" if qkv[1] is None else b.weight(w.name("qkv.bias"), heads.pad_columns(qkv[1]))
    packed = settle(b, Biased(b.op("MatMul", x, matrix), bias))  # [B,S,(H+2KV)P]
    shape: list[int | str] = ["B", heads.kv, "C", heads.padded]
    past = [b.input(f"past_key_values.{layer}.{name}", np.float32, shape) for name in ("key", "value")]
    attend = _grouped_query if b.fused else _scattered
    mixed, *present = attend(b, packed, past, inputs, heads)  # [B,S,HP]
    for name, value in zip(("key", "value"), present, strict=True):
        b.output(f"present.{layer}.{name}", value, np.float32, shape)
    output = b.weight(w.name("output.weight"), np.ascontiguousarray(heads.pad(out[0].T).T))
    return Biased(b.op("MatMul", mixed, output), "" if out[1] is None else b.weight(w.name("output.bias"), out[1]))


def _grouped_query(
    b: Builder, packed: Value, past: list[Value], inputs: DecoderInputs, heads: Heads
) -> list[Value]:
    # A sink of weight exp(lowest) = 0 changes no bit, and keeps the CPU from a tiled kernel that makes int8 models
    # a quarter slower to read a prompt (onnxruntime 1.31, 1.32; docs/performance.md).
    sink = b.constant([LOWEST] * heads.query, np.float32)
    given: list[Value] = [packed, "", ""]
    if heads.norms is not None:
        sizes = b.constant([heads.query * heads.padded, *[heads.kv * heads.padded] * 2], np.int64)
        q, k, v = b.ops("Split", packed, sizes, outputs=3, axis=-1)
        given = [_norm_heads(b, q, heads, heads.query, 0), _norm_heads(b, k, heads, heads.kv, 1), v]
    extra: dict[str, int] = {} if heads.window is None else {"local_window_size": heads.window}
    tables: list[Value] = ["", ""]
    if heads.rotary is not None:
        extra["do_rotary"] = 1
        tables = _tables(b, heads, heads.rotary)
    return b.ops(
        "GroupQueryAttention", *given, *past, inputs.seqlens_k, inputs.total_sequence_length,
        *tables, "", "", sink, outputs=3, domain=CONTRIB,
        num_heads=heads.query, kv_num_heads=heads.kv, scale=heads.scale, **extra,
    )  # fmt: skip


def _tables(b: Builder, heads: Heads, rotary: Rotary) -> list[Value]:
    """Cosines and sines [C,P/2]; what stands behind a half does not turn."""
    more = ((0, 0), (0, (heads.padded - heads.size) // 2))
    cos, sin = np.pad(rotary.cos, more, constant_values=1), np.pad(rotary.sin, more)
    return [b.weight(f"{rotary.name}.cos", cos), b.weight(f"{rotary.name}.sin", sin)]


def _norm_heads(b: Builder, x: Value, heads: Heads, count: int, which: int) -> Value:
    """[B,S,count·P] -> the same, each head normalized by the root of its mean square and scaled."""
    assert heads.norms is not None
    apart = b.op("Reshape", x, b.constant([0, 0, count, heads.padded], np.int64))
    return b.op("Reshape", _normal(b, apart, heads, which), b.constant([0, 0, count * heads.padded], np.int64))


def _normal(b: Builder, x: Value, heads: Heads, which: int) -> Value:
    """[..,P] -> [..,P], divided by the root of the mean square of its E numbers, and scaled."""
    assert heads.norms is not None
    share = heads.size / heads.padded  # the mean is taken over the zeros, too
    scale = heads.pad(heads.norms[which] * np.float32(share**0.5), turned=True)
    return rms_norm_of(b, x, f"{x}.norm", scale, heads.norms[2] * share)


def _scattered(b: Builder, packed: Value, past: list[Value], inputs: DecoderInputs, heads: Heads) -> list[Value]:
    """The same of plain operators: new keys and values are scattered to their slots, later slots are masked."""
    sizes = b.constant([heads.query, heads.kv, heads.kv], np.int64)
    turned = _turn(b, packed, heads.query + 2 * heads.kv, heads.padded)
    q, k, v = b.ops("Split", turned, sizes, outputs=3, axis=1)  # [B,H,S,P], then [B,KV,S,P]
    if heads.norms is not None:
        q, k = (_normal(b, x, heads, which) for which, x in enumerate((q, k)))
    if heads.rotary is not None:
        turns = _turns_at(b, heads, heads.rotary, inputs.position_ids)
        q, k = (_rotate(b, x, *turns) for x in (q, k))
    slots = b.once("slots")
    if slots is None:
        rows = b.op("Unsqueeze", inputs.position_ids, b.constant([1, 3], np.int64))  # [B,1,S,1]
        slots = b.once("slots", b.op("Expand", rows, b.op("Shape", k)))
        capacity = b.op("Shape", past[0], start=2, end=3)
        b.once("rows", rows)
        b.once("columns", b.op("Range", _int(b, 0), b.op("Squeeze", capacity), _int(b, 1)))  # [C]
    assert slots is not None
    hidden = _hidden(b, heads.window)
    key, value = (b.op("ScatterElements", old, slots, new, axis=2) for old, new in zip(past, (k, v), strict=True))
    shared = heads.query // heads.kv
    if shared == 1:
        mixed = _weigh(b, q, key, value, heads.scale, lambda scores: b.op("Where", hidden, _lowest(b), scores))
    else:  # every group of queries against its own keys
        apart = b.op("Reshape", q, b.constant([0, heads.kv, shared, -1, heads.padded], np.int64))
        k, v = (b.op("Unsqueeze", one, b.constant([2], np.int64)) for one in (key, value))
        wide = b.op("Unsqueeze", hidden, b.constant([2], np.int64))
        mixed = _weigh(b, apart, k, v, heads.scale, lambda scores: b.op("Where", wide, _lowest(b), scores), axes=5)
        mixed = b.op("Reshape", mixed, b.constant([0, heads.query, -1, heads.padded], np.int64))
    return [_merge_heads(b, mixed, heads.query * heads.padded), key, value]


def _hidden(b: Builder, window: int | None) -> Value:
    """bool [B,1,S,C]: slots that hold later tokens, or those that have left the window."""
    key = ("hidden", window)
    if (made := b.once(key)) is not None:
        return made
    rows, columns = b.once("rows"), b.once("columns")
    assert rows is not None and columns is not None
    hidden = b.op("Greater", columns, rows)
    if window is not None:
        hidden = b.op("Or", hidden, b.op("LessOrEqual", columns, b.op("Sub", rows, _int(b, window))))
    return b.once(key, hidden) or hidden


def _turns_at(b: Builder, heads: Heads, rotary: Rotary, position_ids: Value) -> list[Value]:
    """Cosines and sines of the positions, [B,1,S,P/2] each."""
    made: list[Value] = []
    for table in _tables(b, heads, rotary):
        turns = b.once(("turns", table))
        if turns is None:
            chosen = b.op("Gather", table, position_ids, axis=0)  # [B,S,P/2]
            turns = b.once(("turns", table), b.op("Unsqueeze", chosen, b.constant([1], np.int64)))
        made.append(str(turns))
    return made


def _turns_of_all(b: Builder, rotary: Rotary, tokens: Value) -> list[Value]:
    """Cosines and sines of the positions 0, 1, 2, ... of tokens [B,S], [S,E/2] each."""
    made: list[Value] = []
    for name, table in (("cos", rotary.cos), ("sin", rotary.sin)):
        full = b.weight(f"{rotary.name}.{name}", table)
        turns = b.once(("turns", full))
        if turns is None:
            zero, length = b.constant([0], np.int64), b.op("Shape", tokens, start=1, end=2)
            turns = b.once(("turns", full), b.op("Slice", full, zero, length, zero))
        made.append(str(turns))
    return made


def _rotate(b: Builder, x: Value, cos: Value, sin: Value) -> Value:
    """[B,H,S,P] -> the same, the i-th numbers of both halves turned by the position's i-th angle."""
    first, second = b.ops("Split", x, outputs=2, axis=-1, num_outputs=2)
    left = b.op("Sub", b.op("Mul", first, cos), b.op("Mul", second, sin))
    right = b.op("Add", b.op("Mul", second, cos), b.op("Mul", first, sin))
    return b.op("Concat", left, right, axis=-1)


def masked_attention(
    b: Builder, x: Value, qkv: tuple[Float, Float | None], w: Weights, attention_mask: Value,
    *, heads: int, size: int, scale: float, attention_bias: Value | ByContent = "", rotary: Rotary | None = None,
) -> Value:  # fmt: skip
    """Self-attention among the tokens that attention_mask [B,S] marks with 1, [B,S,D] -> [B,S,H·E].

    attention_bias: added to the scaled scores, [B or 1, H or 1, S, S], or a function that makes it of this
    layer's queries and keys. rotary: positions that turn queries and keys.
    """
    matrix = b.weight(w.name("qkv.weight"), qkv[0])
    bias = "" if qkv[1] is None else b.weight(w.name("qkv.bias"), qkv[1])
    if not b.fused:
        product = settle(b, Biased(b.op("MatMul", x, matrix), bias))  # [B,S,3HE]
        return _masked(b, product, attention_mask, heads, size, scale, attention_bias, rotary)
    mask = b.once("mask") or b.once("mask", b.op("Cast", attention_mask, to=6))  # int32
    assert mask is not None
    kept: dict[str, float] = {"num_heads": heads, "scale": scale, "mask_filter_value": LOWEST}
    if not callable(attention_bias) and rotary is None:
        return b.op("Attention", x, matrix, bias, mask, "", attention_bias, domain=CONTRIB, **kept)
    # Queries and keys are turned, or decide what is added, before the operator that compares them.
    packed = settle(b, Biased(b.op("MatMul", x, matrix), bias))
    q, k, v = b.ops("Split", packed, outputs=3, axis=-1, num_outputs=3)
    if rotary is not None:
        tables = [
            b.weight(f"{rotary.name}.{name}", table) for name, table in (("cos", rotary.cos), ("sin", rotary.sin))
        ]
        first = b.constant([0], np.int64)  # the position of a row's first token
        q, k = (b.op("RotaryEmbedding", y, first, *tables, domain=CONTRIB, num_heads=heads) for y in (q, k))
    if callable(attention_bias):
        attention_bias = attention_bias(_turn(b, q, heads, size), _turn(b, k, heads, size))
    return b.op("MultiHeadAttention", q, k, v, "", mask, attention_bias, domain=CONTRIB, **kept)


def _masked(
    b: Builder, packed: Value, attention_mask: Value, heads: int, size: int, scale: float,
    attention_bias: Value | ByContent, rotary: Rotary | None,
) -> Value:  # fmt: skip
    """The same of plain operators."""
    q, k, v = _split_heads(b, packed, heads, size, parts=3)
    if rotary is not None:
        turns = _turns_of_all(b, rotary, attention_mask)
        q, k = (_rotate(b, y, *turns) for y in (q, k))
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


def _weigh(
    b: Builder, q: Value, k: Value, v: Value, scale: float, mask: Callable[[Value], Value], axes: int = 4
) -> Value:
    """softmax(mask(q kᵀ scale)) v over the last two of so many axes."""
    across = b.op("Transpose", k, perm=[*range(axes - 2), axes - 1, axes - 2])
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
