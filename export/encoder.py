"""The encoder that BERT's family shares (Devlin et al., 2019): embeddings, then post-norm blocks.

A family brings its config, what its checkpoints call the weights, and its heads. Letters as in parts.py; W width
of the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from torchless.errors import ExportError
from torchless.export.attention import ByContent, masked_attention
from torchless.export.builder import Builder, Value
from torchless.export.config import Config
from torchless.export.families import Facts
from torchless.export.heads import EncoderInputs, Head, forgive_other_heads, write_head
from torchless.export.parts import Biased, activate, add, embed, linear, norm
from torchless.export.weights import Float, Weights
from torchless.manifest import Pooling


@dataclass(frozen=True)
class EncoderConfig:
    """The fields that the families share, under Hugging Face's names; the defaults are those of BERT."""

    vocab_size: int = 30522
    embedding_size: int = 0  # W; where it is 0 by default, the family has no such field and W is hidden_size
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    eps: float = 1e-12
    tied: bool = True

    @classmethod
    def read(
        cls, c: Config, default: EncoderConfig, names: Mapping[str, str] = MappingProxyType({})
    ) -> EncoderConfig:
        """names: the family's own for some of the fields. Raises ExportError for what is not implemented."""
        c.refuse("position_embedding_type", "absolute")
        c.refuse("is_decoder", False)
        c.refuse("add_cross_attention", False)
        c.refuse("is_encoder_decoder", False)
        c.refuse("pruned_heads", {})
        c.refuse("quantization_config")

        def whole(field: str, least: int = 1) -> int:
            return c.whole(names.get(field, field), getattr(default, field), least=least)

        width, heads = whole("hidden_size"), whole("num_attention_heads")
        if width % heads:
            first, second = (names.get(field, field) for field in ("hidden_size", "num_attention_heads"))
            raise ExportError(f"config.json: {first}={width} is not a multiple of {second}={heads}")
        return cls(
            vocab_size=whole("vocab_size"),
            embedding_size=whole("embedding_size") if default.embedding_size else width,
            hidden_size=width,
            num_hidden_layers=whole("num_hidden_layers"),
            num_attention_heads=heads,
            intermediate_size=whole("intermediate_size"),
            hidden_act=c.text(names.get("hidden_act", "hidden_act"), default.hidden_act),
            max_position_embeddings=whole("max_position_embeddings"),
            type_vocab_size=whole("type_vocab_size", least=min(1, default.type_vocab_size)),
            eps=c.number("layer_norm_eps", default.eps),
            tied=c.flag("tie_word_embeddings", default.tied),
        )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def scale(self) -> float:
        """Of the products of queries and keys."""
        return float(self.head_size**-0.5)


@dataclass(frozen=True)
class BlockNames:
    """What a checkpoint calls the parts of a block; the defaults are those of BERT."""

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    inner: str = "intermediate.dense"
    outer: str = "output.dense"
    output_norm: str = "output.LayerNorm"


def named_as_body(weights: Weights, prefix: str, heads: Mapping[str, Head], head: Head) -> Weights:
    """A checkpoint's tensors by the names that they have in the bare body, whichever class and year wrote it.

    Stored position ids, and the weights of heads other than `head`, may stay unused.
    """
    w = weights.renamed([(r"\.gamma$", ".weight"), (r"\.beta$", ".bias"), (rf"^{prefix}\.", "")])
    w.forgive(r"embeddings\.(position_ids|token_type_ids)")
    forgive_other_heads(w, heads, head)
    return w


C = TypeVar("C", bound=EncoderConfig)


def write_encoder(
    b: Builder, c: C, w: Weights, body: Callable[[Builder, C, Weights, EncoderInputs], Value], head: Head,
    pooling: Pooling | None, *, segments: bool, context_length: int | None = None,
) -> Facts:  # fmt: skip
    """An encoder's graph: its inputs, its body's hidden states [B,S,D], and a head on them.

    segments: whether it reads token_type_ids. context_length: where it is not max_position_embeddings.
    """
    inputs = EncoderInputs.declare(b, segments=segments)
    labels = write_head(b, c, w, body(b, c, w, inputs), inputs.mask, head, pooling, c.hidden_size)
    return Facts(
        context_length or c.max_position_embeddings,
        c.vocab_size,
        labels=labels,
        segments=c.type_vocab_size if segments else None,
    )


def embeddings(b: Builder, c: EncoderConfig, w: Weights, inputs: EncoderInputs, position_ids: Value = "") -> Value:
    """Token, segment and position vectors, added and normalized, [B,S] -> [B,S,W].

    position_ids: int64 [B,S]; "" for 0, 1, 2, ... in every row.
    """

    def vectors(kind: str, rows: int) -> tuple[str, Float]:
        name = f"{kind}_embeddings.weight"
        return w.name(name), w.shaped(name, rows, c.embedding_size)

    x = embed(b, *vectors("word", c.vocab_size), inputs.ids)
    name, positions = vectors("position", c.max_position_embeddings)
    if inputs.types:
        x = add(b, x, embed(b, *vectors("token_type", c.type_vocab_size), inputs.types))
    elif c.type_vocab_size:
        positions = positions + vectors("token_type", c.type_vocab_size)[1][0]  # the only segment is everywhere
    if position_ids:
        places = embed(b, name, positions, position_ids)
    else:
        zero, length = b.constant([0], np.int64), b.op("Shape", inputs.ids, start=1, end=2)
        places = b.op("Slice", b.weight(name, positions), zero, length, zero)  # [S,W]
    return norm(b, add(b, x, places), w.under("LayerNorm"), c.embedding_size, c.eps)


def positions_after_padding(b: Builder, ids: Value, padding: int) -> Value:
    """ids -> positions, int64 [B,S]: tokens count up from padding + 1, a padding token anywhere has `padding`."""
    token = b.op("Cast", b.op("Not", b.op("Equal", ids, b.constant(padding, np.int64))), to=7)  # int64
    count = b.op("CumSum", token, b.constant(1, np.int64))
    return b.op("Add", b.op("Mul", count, token), b.constant(padding, np.int64))


def block(
    b: Builder, c: EncoderConfig, x: Value, w: Weights, mask: Value, names: BlockNames,
    attention_bias: Value | ByContent = "",
) -> Value:  # fmt: skip
    """[B,S,D] -> [B,S,D]: attention, then feed-forward, each added to what it read and normalized."""
    attended = attention(b, c, x, w, mask, names, attention_bias)
    x = norm(b, add(b, x, attended), w.under(names.attention_norm), c.hidden_size, c.eps)
    return norm(b, add(b, x, feed_forward(b, c, x, w, names)), w.under(names.output_norm), c.hidden_size, c.eps)


def attention(
    b: Builder, c: EncoderConfig, x: Value, w: Weights, mask: Value, names: BlockNames,
    attention_bias: Value | ByContent = "",
) -> Biased:  # fmt: skip
    """[B,S,D] -> [B,S,D], both ways, among the tokens that are not padding."""
    d = c.hidden_size
    parts = (names.query, names.key, names.value)
    matrix = np.concatenate([w.shaped(f"{part}.weight", d, d).T for part in parts], axis=1)  # [D,3D]
    bias = np.concatenate([w.shaped(f"{part}.bias", d) for part in parts])
    mixed = masked_attention(
        b, x, (matrix, bias), w.under(names.query.rpartition(".")[0]), mask,
        heads=c.num_attention_heads, size=c.head_size, scale=c.scale, attention_bias=attention_bias,
    )  # fmt: skip
    return linear(b, mixed, w.under(names.output), d, d)


def feed_forward(b: Builder, c: EncoderConfig, x: Value, w: Weights, names: BlockNames) -> Biased:
    """[B,S,D] -> [B,S,D] through intermediate_size."""
    inner = linear(b, x, w.under(names.inner), c.hidden_size, c.intermediate_size)
    outer = w.under(names.outer)
    return linear(b, activate(b, inner, c.hidden_act), outer, c.intermediate_size, c.hidden_size)
