"""ModernBERT (Warner et al., 2024): pre-norm blocks with rotary positions and a gated feed-forward.

Some layers attend to the whole text, the others to a window around each token; each kind has rotary positions of
its own. Letters as in parts.py; I width inside. The names of weights are the checkpoint's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchless.errors import ExportError
from torchless.export.attention import distances, masked_attention
from torchless.export.builder import Builder, Value
from torchless.export.config import Config
from torchless.export.encoder import named_as_body
from torchless.export.families import Facts
from torchless.export.heads import (
    EncoderInputs,
    Head,
    Outputs,
    body,
    first_token,
    scores,
    span_scores,
    token_scores,
    width_of,
    write_head,
)
from torchless.export.parts import LOWEST, Biased, activate, add, embed, linear, norm, project, settle
from torchless.export.pooling import pool
from torchless.export.rotary import Rotary
from torchless.export.weights import Weights
from torchless.manifest import Pooling

EMBEDDING = "embeddings.tok_embeddings.weight"
FULL, LOCAL = "full_attention", "sliding_attention"
# By kind of layer: what releases before transformers 5 call the base of its angles, and its default.
BASES = {FULL: ("global_rope_theta", 160_000.0), LOCAL: ("local_rope_theta", 10_000.0)}


@dataclass(frozen=True)
class ModernBertConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    hidden_activation: str
    classifier_activation: str
    classifier_pooling: str
    context: int
    eps: float
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    classifier_bias: bool
    decoder_bias: bool
    tied: bool
    kinds: tuple[str, ...]  # by layer, FULL or LOCAL
    reach: int | None  # how many tokens to either side a local layer sees; None for all
    rotary: dict[str, Rotary]  # by kind

    @classmethod
    def read(cls, c: Config) -> ModernBertConfig:
        c.refuse("quantization_config")
        width, heads = c.whole("hidden_size", 768), c.whole("num_attention_heads", 12)
        if width % heads:
            raise ExportError(f"config.json: hidden_size={width} is not a multiple of num_attention_heads={heads}")
        size = width // heads
        c.refuse("head_dim", size)
        if size % 2:
            raise ExportError(f"config.json: heads of size {size} have no halves to turn")
        pooling = c.text("classifier_pooling", "cls")
        if pooling not in ("cls", "mean"):
            raise ExportError(
                f"config.json: classifier_pooling={pooling!r} is not supported (supported: cls, mean)"
            )
        context = c.context("max_position_embeddings", 8192)
        reach = c.whole("local_attention", 128, least=0) // 2
        c.refuse("sliding_window", reach)
        kinds = _kinds(c)
        return cls(
            vocab_size=c.whole("vocab_size", 50368),
            hidden_size=width,
            intermediate_size=c.whole("intermediate_size", 1152),
            num_attention_heads=heads,
            hidden_activation=c.text("hidden_activation", "gelu"),
            classifier_activation=c.text("classifier_activation", "gelu"),
            classifier_pooling=pooling,
            context=context,
            eps=c.number("norm_eps", 1e-5),
            norm_bias=c.flag("norm_bias", False),
            attention_bias=c.flag("attention_bias", False),
            mlp_bias=c.flag("mlp_bias", False),
            classifier_bias=c.flag("classifier_bias", False),
            decoder_bias=c.flag("decoder_bias", True),
            tied=c.flag("tie_word_embeddings", True),
            kinds=kinds,
            reach=None if reach >= context - 1 else reach,
            rotary={kind: _rotary(c, kind, size, context) for kind in sorted(set(kinds))},
        )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


def _kinds(c: Config) -> tuple[str, ...]:
    """Which layers are global: those that layer_types names, else every n-th, the first among them."""
    layers = c.whole("num_hidden_layers", 22)
    kinds: Any = c.raw.get("layer_types")
    if kinds is None:
        every = c.whole("global_attn_every_n_layers", 3)
        return tuple(LOCAL if i % every else FULL for i in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= set(BASES):
        raise ExportError(f"config.json: layer_types must name {layers} of {', '.join(BASES)}")
    return tuple(kinds)


def _rotary(c: Config, kind: str, size: int, context: int) -> Rotary:
    """rope_parameters holds an object for each kind of layer; a rope_scaling of older days is for both."""
    given: Any = c.raw.get("rope_parameters")
    given = {} if given is None else given
    old, default = BASES[kind]
    own: Any = given.get(kind) if isinstance(given, Mapping) else None
    own = {} if own is None else own
    if not isinstance(own, Mapping) or not isinstance(given, Mapping) or not set(given) <= set(BASES):
        raise ExportError(
            f"config.json: rope_parameters is {given!r}, expected an object for each of {', '.join(BASES)}"
        )
    scaling: Any = c.raw.get("rope_scaling")
    scaling = {} if scaling is None else scaling
    if not isinstance(scaling, Mapping):
        raise ExportError(f"config.json: rope_scaling is {scaling!r}, expected an object")
    parameters = {"rope_theta": c.number(old, default)} | {**own, **scaling}
    trained = c.whole("max_position_embeddings", 8192)
    own_config = Config({"rope_parameters": parameters, "max_position_embeddings": trained})
    return Rotary.read(own_config, size, context, f"rotary.{kind}")


def build(b: Builder, config: Config, weights: Weights, head: Head, pooling: Pooling | None = None) -> Facts:
    """Write the graph of docs/graph.md's encoder contract, with this head."""
    c = ModernBertConfig.read(config)
    w = named_as_body(weights, "model", HEADS, head)
    inputs = EncoderInputs.declare(b, segments=False)
    b.once("tokens", inputs.mask)
    labels = write_head(b, c, w, modernbert(b, c, w, inputs), inputs.mask, head, pooling, c.hidden_size)
    return Facts(c.context, c.vocab_size, labels=labels)


def modernbert(b: Builder, c: ModernBertConfig, w: Weights, inputs: EncoderInputs) -> Value:
    """-> hidden states [B,S,D]."""
    table = w.shaped(EMBEDDING, c.vocab_size, c.hidden_size)
    x = normal(b, c, embed(b, w.name(EMBEDDING), table, inputs.ids), w.under("embeddings.norm"))
    for i, kind in enumerate(c.kinds):
        h = w.under(f"layers.{i}")
        inner = normal(b, c, x, h.under("attn_norm")) if i else x  # the embeddings are normalized already
        x = add(b, x, attention(b, c, inner, h.under("attn"), inputs, kind))
        x = add(b, x, feed_forward(b, c, normal(b, c, x, h.under("mlp_norm")), h.under("mlp")))
    return normal(b, c, x, w.under("final_norm"))


def normal(b: Builder, c: ModernBertConfig, x: Value, w: Weights) -> Value:
    """[..,D] -> [..,D]."""
    return norm(b, x, w, c.hidden_size, c.eps, bias=c.norm_bias)


def attention(b: Builder, c: ModernBertConfig, x: Value, w: Weights, inputs: EncoderInputs, kind: str) -> Biased:
    """[B,S,D] -> [B,S,D], both ways."""
    d = c.hidden_size
    bias = w.shaped("Wqkv.bias", 3 * d) if c.attention_bias else None
    far = hide_far(b, inputs.ids, c.reach) if kind == LOCAL and c.reach is not None else ""
    mixed = masked_attention(
        b, x, (w.shaped("Wqkv.weight", 3 * d, d).T, bias), w, inputs.mask, heads=c.num_attention_heads,
        size=c.head_size, scale=c.head_size**-0.5, attention_bias=far, rotary=c.rotary[kind],
    )  # fmt: skip
    return linear(b, mixed, w.under("Wo"), d, d, bias=c.attention_bias)


def hide_far(b: Builder, ids: Value, reach: int) -> Value:
    """What keeps tokens from those more than `reach` away, in every local layer, [1,1,S,S]."""
    if (made := b.once("far")) is not None:
        return made
    far = b.op("Greater", b.op("Abs", distances(b, ids)), b.constant(reach, np.int64))
    low, zero = (b.constant(value, np.float32) for value in (LOWEST, 0))
    wide = b.op("Unsqueeze", b.op("Where", far, low, zero), b.constant([0, 1], np.int64))
    return b.once("far", wide) or wide


def feed_forward(b: Builder, c: ModernBertConfig, x: Value, w: Weights) -> Biased:
    """Wo(act(first half of Wi(x)) · second half) (Shazeer, 2020), [B,S,D] -> [B,S,D] through I."""
    wide = settle(b, linear(b, x, w.under("Wi"), c.hidden_size, 2 * c.intermediate_size, bias=c.mlp_bias))
    first, gate = b.ops("Split", wide, outputs=2, axis=-1, num_outputs=2)  # [B,S,I]
    inner = b.op("Mul", activate(b, Biased(first), c.hidden_activation), gate)
    return linear(b, inner, w.under("Wo"), c.intermediate_size, c.hidden_size, bias=c.mlp_bias)


def predict(b: Builder, c: ModernBertConfig, w: Weights, x: Value) -> Value:
    """The layer that every head begins with, [..,D] -> [..,D]."""
    dense = linear(b, x, w.under("head.dense"), c.hidden_size, c.hidden_size, bias=c.classifier_bias)
    return normal(b, c, activate(b, dense, c.classifier_activation), w.under("head.norm"))


def word_scores(b: Builder, c: ModernBertConfig, w: Weights, x: Value) -> Outputs:
    """Every token's state against the table of words, [B,S,D] -> [B,S,V]."""
    own = "decoder.weight"
    name = EMBEDDING if c.tied else own
    table = w.shaped(name, c.vocab_size, c.hidden_size)
    if c.tied:
        w.check_copy(own, table)
    bias = b.weight("decoder.bias", w.shaped("decoder.bias", c.vocab_size)) if c.decoder_bias else ""
    logits = settle(b, Biased(project(b, predict(b, c, w, x), name, table), bias))
    return {"logits": (logits, ["B", "S", c.vocab_size])}


def text_scores(b: Builder, c: ModernBertConfig, w: Weights, x: Value) -> Outputs:
    """The first token's state, or the mean of all, through the head to the labels: [B,S,D] -> [B,L]."""
    mask = b.once("tokens")
    assert mask is not None
    text = (
        first_token(b, x) if c.classifier_pooling == "cls" else pool(b, x, mask, Pooling("mean", normalize=False))
    )
    h = w.under("classifier")
    return scores(b, predict(b, c, w, text), h, c.hidden_size, width_of(h))


def tokens(b: Builder, c: ModernBertConfig, w: Weights, x: Value) -> Outputs:
    """[B,S,D] -> [B,S,L]."""
    return token_scores(b, c, w, predict(b, c, w, x))


def spans(b: Builder, c: ModernBertConfig, w: Weights, x: Value) -> Outputs:
    """[B,S,D] -> how well an answer starts, and ends, at each token; each [B,S]."""
    return span_scores(b, c, w, predict(b, c, w, x), "classifier")


HEAD, CLASSIFIER = r"head\..*", r"classifier\..*"
HEADS = {
    "Model": Head("feature-extraction", body),
    "ForMaskedLM": Head("fill-mask", word_scores, (HEAD, r"decoder\..*")),
    "ForSequenceClassification": Head("text-classification", text_scores, (HEAD, CLASSIFIER)),
    "ForMultipleChoice": Head("multiple-choice", text_scores, (HEAD, CLASSIFIER)),
    "ForTokenClassification": Head("token-classification", tokens, (HEAD, CLASSIFIER)),
    "ForQuestionAnswering": Head("question-answering", spans, (HEAD, CLASSIFIER)),
}
