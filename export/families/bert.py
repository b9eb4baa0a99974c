"""BERT (Devlin et al., 2019): post-norm blocks over tokens, learned positions and segments.

Letters as in parts.py. The names of weights are the checkpoint's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchless.bundle import Pooling
from torchless.errors import ExportError
from torchless.export.attention import masked_attention
from torchless.export.builder import Builder, Value
from torchless.export.config import Config
from torchless.export.families import Facts
from torchless.export.heads import (
    EncoderInputs,
    Head,
    Outputs,
    body,
    dense,
    first_token,
    forgive_other_heads,
    scores,
    span_scores,
    token_scores,
    width_of,
    write_head,
)
from torchless.export.parts import Biased, Pending, activate, add, linear, norm, project, settle
from torchless.export.weights import Weights


@dataclass(frozen=True)
class BertConfig:
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    type_vocab_size: int
    eps: float
    tied: bool

    @classmethod
    def read(cls, c: Config) -> BertConfig:
        c.refuse("position_embedding_type", "absolute")
        c.refuse("is_decoder", False)
        c.refuse("add_cross_attention", False)
        c.refuse("is_encoder_decoder", False)
        c.refuse("pruned_heads", {})
        c.refuse("quantization_config")
        width = c.whole("hidden_size", 768)
        if width % (heads := c.whole("num_attention_heads", 12)):
            raise ExportError(f"config.json: hidden_size={width} is not a multiple of num_attention_heads={heads}")
        return cls(
            vocab_size=c.whole("vocab_size", 30522),
            hidden_size=width,
            num_hidden_layers=c.whole("num_hidden_layers", 12),
            num_attention_heads=heads,
            intermediate_size=c.whole("intermediate_size", 3072),
            hidden_act=c.text("hidden_act", "gelu"),
            max_position_embeddings=c.whole("max_position_embeddings", 512),
            type_vocab_size=c.whole("type_vocab_size", 2),
            eps=c.number("layer_norm_eps", 1e-12),
            tied=c.flag("tie_word_embeddings", True),
        )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


def build(b: Builder, config: Config, weights: Weights, head: Head, pooling: Pooling | None = None) -> Facts:
    """Write the graph of docs/graph.md's encoder contract, with this head."""
    c = BertConfig.read(config)
    w = weights.renamed([(r"\.gamma$", ".weight"), (r"\.beta$", ".bias"), (r"^bert\.", "")])
    w.forgive(r"embeddings\.(position_ids|token_type_ids)")
    forgive_other_heads(w, HEADS, head)
    inputs = EncoderInputs.declare(b, segments=True)
    x = bert(b, c, w, inputs)  # [B,S,D]
    labels = write_head(b, c, w, x, inputs.mask, head, pooling, c.hidden_size)
    return Facts(c.max_position_embeddings, c.vocab_size, labels=labels)


def bert(b: Builder, c: BertConfig, w: Weights, inputs: EncoderInputs) -> Value:
    """-> hidden states [B,S,D]."""
    x = embeddings(b, c, w.under("embeddings"), inputs.ids, inputs.types)
    for i in range(c.num_hidden_layers):
        h = w.under(f"encoder.layer.{i}")
        attended = attention(b, c, x, h.under("attention"), inputs.mask)
        x = norm(b, add(b, x, attended), h.under("attention.output.LayerNorm"), c.hidden_size, c.eps)
        x = norm(b, add(b, x, feed_forward(b, c, x, h)), h.under("output.LayerNorm"), c.hidden_size, c.eps)
    return x


def embeddings(b: Builder, c: BertConfig, w: Weights, ids: Value, types: Value) -> Value:
    """Token, position and segment vectors, added and normalized, [B,S] -> [B,S,D]."""
    d = c.hidden_size

    def table(kind: str, rows: int) -> Value:
        return b.weight(w.name(f"{kind}_embeddings.weight"), w.shaped(f"{kind}_embeddings.weight", rows, d))

    words = b.op("Gather", table("word", c.vocab_size), ids, axis=0)
    segments = b.op("Gather", table("token_type", c.type_vocab_size), types, axis=0)
    zero, length = b.constant([0], np.int64), b.op("Shape", ids, start=1, end=2)
    positions = b.op("Slice", table("position", c.max_position_embeddings), zero, length, zero)  # [S,D]
    x: Pending = add(b, settle(b, add(b, words, segments)), positions)
    return norm(b, x, w.under("LayerNorm"), d, c.eps)


def attention(b: Builder, c: BertConfig, x: Value, w: Weights, mask: Value) -> Biased:
    """[B,S,D] -> [B,S,D], both ways, among the tokens that are not padding."""
    d = c.hidden_size
    names = ("self.query", "self.key", "self.value")
    matrix = np.concatenate([w.shaped(f"{name}.weight", d, d).T for name in names], axis=1)  # [D,3D]
    bias = np.concatenate([w.shaped(f"{name}.bias", d) for name in names])
    mixed = masked_attention(
        b, x, (matrix, bias), w.under("self"), mask,
        heads=c.num_attention_heads, size=c.head_size, scale=c.head_size**-0.5,
    )  # fmt: skip
    return linear(b, mixed, w.under("output.dense"), d, d)


def feed_forward(b: Builder, c: BertConfig, x: Value, w: Weights) -> Biased:
    """[B,S,D] -> [B,S,D] through intermediate_size."""
    inner = linear(b, x, w.under("intermediate.dense"), c.hidden_size, c.intermediate_size)
    return linear(b, activate(b, inner, c.hidden_act), w.under("output.dense"), c.intermediate_size, c.hidden_size)


def masked_words(b: Builder, c: BertConfig, w: Weights, x: Value) -> Outputs:
    """[B,S,D] -> scores of the vocabulary [B,S,V]."""
    h = w.under("cls.predictions")
    x = dense(b, x, h.under("transform.dense"), c.hidden_size, c.hidden_size, c.hidden_act)
    x = norm(b, x, h.under("transform.LayerNorm"), c.hidden_size, c.eps)
    # An untied head has a matrix and a bias of its own; a tied one may come with copies of those it shares.
    name = "embeddings.word_embeddings.weight" if c.tied else h.name("decoder.weight")
    bias = "decoder.bias" if "decoder.bias" in h and not (c.tied and "bias" in h) else "bias"
    table, shift = w.shaped(name, c.vocab_size, c.hidden_size), h.shaped(bias, c.vocab_size)
    if c.tied:
        h.check_copy("decoder.weight", table)
        h.check_copy("decoder.bias", shift)
    w.forgive(r"cls\.predictions\.bias")
    logits = b.op("Add", project(b, x, name, table), b.weight(h.name(bias), shift))
    return {"logits": (logits, ["B", "S", c.vocab_size])}


def pooler(b: Builder, c: BertConfig, w: Weights, x: Value) -> Value:
    """The first token's state through a dense layer and tanh, [B,S,D] -> [B,D]."""
    return dense(b, first_token(b, x), w.under("pooler.dense"), c.hidden_size, c.hidden_size, "tanh")


def text_scores(b: Builder, c: BertConfig, w: Weights, x: Value) -> Outputs:
    """[B,S,D] -> logits [B,L]."""
    h = w.under("classifier")
    return scores(b, pooler(b, c, w, x), h, c.hidden_size, width_of(h))


def next_sentence(b: Builder, c: BertConfig, w: Weights, x: Value) -> Outputs:
    """[B,S,D] -> logits [B,2]: the second text follows the first, or is any other."""
    return scores(b, pooler(b, c, w, x), w.under("cls.seq_relationship"), c.hidden_size, 2)


POOLED = r"pooler\..*"
HEADS = {
    "Model": Head("feature-extraction", body),
    "ForPreTraining": Head("fill-mask", masked_words, (r"cls\.predictions\..*",)),
    "ForMaskedLM": Head("fill-mask", masked_words, (r"cls\.predictions\..*",)),
    "ForNextSentencePrediction": Head(
        "next-sentence-prediction", next_sentence, (POOLED, r"cls\.seq_relationship\..*"), ("is_next", "random")
    ),
    "ForSequenceClassification": Head("text-classification", text_scores, (POOLED, r"classifier\..*")),
    "ForMultipleChoice": Head("multiple-choice", text_scores, (POOLED, r"classifier\..*")),
    "ForTokenClassification": Head("token-classification", token_scores, (r"classifier\..*",)),
    "ForQuestionAnswering": Head("question-answering", span_scores, (r"qa_outputs\..*",)),
}
