"""GPT-2 (Radford et al., 2019): pre-norm blocks, learned positions, a head that is tied to the embedding.

Letters as in parts.py; L labels. The names of weights are the checkpoint's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchless.errors import ExportError
from torchless.export.attention import DecoderInputs, Heads, causal_attention, padded_head
from torchless.export.builder import Builder, Value
from torchless.export.config import Config
from torchless.export.families import Facts
from torchless.export.heads import LABELLED, Head, Outputs, forgive_other_heads, width_of
from torchless.export.parts import (
    Biased,
    activate,
    add,
    conv1d,
    embed,
    linear,
    norm,
    pick_rows,
    project,
    settle,
)
from torchless.export.weights import Float, Weights
from torchless.manifest import CacheLayout, Pooling

# transformers takes the fields by these names, too.
SECOND_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
PREFIX = [(r"^transformer\.", "")]  # the bare body's checkpoints lack it


@dataclass(frozen=True)
class GPT2Config:
    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    activation_function: str
    eps: float
    tied: bool
    scale_by_size: bool  # divide scores by the square root of the head's size
    scale_by_layer: bool  # and by the layer's number, from 1 (Mistral's stabilised GPT-2)
    bias: bool  # of norms and linear layers; nanoGPT can do without
    summary_activation: str
    embedding: str = "wte.weight"  # its name in the checkpoint: the head is tied to it

    @classmethod
    def read(cls, c: Config) -> GPT2Config:
        c = c.renamed(SECOND_NAMES)
        c.refuse("add_cross_attention", False)
        c.refuse("is_encoder_decoder", False)
        shared = shared_fields(c, vocab_size=50257, n_positions=1024)
        return cls(
            **shared,
            n_inner=c.whole("n_inner", 4 * shared["n_embd"]),
            activation_function=c.text("activation_function", "gelu_new"),
            scale_by_size=c.flag("scale_attn_weights", True),
            scale_by_layer=c.flag("scale_attn_by_inverse_layer_idx", False),
            bias=c.flag("bias", True),
        )

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    def scale(self, layer: int) -> float:
        by_size = self.head_size**-0.5 if self.scale_by_size else 1.0
        return by_size / (layer + 1) if self.scale_by_layer else by_size


def shared_fields(c: Config, *, vocab_size: int, n_positions: int) -> dict[str, Any]:
    """The fields of GPT2Config that GPT-1 has, too; its defaults differ in these two. Raises ExportError."""
    c.refuse("pruned_heads", {})
    c.refuse("quantization_config")
    width, heads = c.whole("n_embd", 768), c.whole("n_head", 12)
    if width % heads:
        raise ExportError(f"config.json: n_embd={width} is not a multiple of n_head={heads}")
    return {
        "vocab_size": c.whole("vocab_size", vocab_size),
        "n_positions": c.whole("n_positions", n_positions),
        "n_embd": width,
        "n_layer": c.whole("n_layer", 12),
        "n_head": heads,
        "eps": c.number("layer_norm_epsilon", 1e-5),
        "tied": c.flag("tie_word_embeddings", True),
        "summary_activation": c.text("summary_activation", "") or "linear",
    }


Body = Callable[[Builder, GPT2Config, Weights, DecoderInputs], Value]  # hidden states of the rows asked for


def build(b: Builder, config: Config, weights: Weights, head: Head, pooling: Pooling | None = None) -> Facts:
    """Write the graph of docs/graph.md's decoder contract, with this head."""
    return write_decoder(b, config, GPT2Config.read(config), weights.renamed(PREFIX), head, gpt2)


def write_decoder(b: Builder, config: Config, c: GPT2Config, w: Weights, head: Head, body: Body) -> Facts:
    """A GPT's graph: its body, and one of the heads below on it."""
    if head.task == "multiple-choice":
        config.refuse("summary_type", "cls_index", "last")
        config.refuse("summary_use_proj", True)
        config.refuse("summary_proj_to_labels", True)
    w.forgive(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, which old checkpoints store
    forgive_other_heads(w, HEADS, head)
    inputs = DecoderInputs.declare(b)
    logits, shape = head.write(b, c, w, body(b, c, w, inputs))["logits"]
    b.output("logits", logits, np.float32, shape)
    w.check_all_used()
    labels = int(shape[-1]) if head.task in LABELLED else None
    return Facts(c.n_positions, c.vocab_size, CacheLayout(c.n_layer, c.n_head, padded_head(c.head_size)), labels)


def gpt2(b: Builder, c: GPT2Config, w: Weights, inputs: DecoderInputs) -> Value:
    """-> hidden states of the rows asked for [B,K,D]."""
    x = embeddings(b, c, w, inputs, "wpe.weight")
    for i in range(c.n_layer):
        h = w.under(f"h.{i}")
        x = add(b, x, attention(b, c, layer_norm(b, c, x, h.under("ln_1")), h.under("attn"), inputs, i))
        x = add(b, x, feed_forward(b, c, layer_norm(b, c, x, h.under("ln_2")), h.under("mlp")))
    return pick_rows(b, layer_norm(b, c, x, w.under("ln_f")), inputs.logits_positions)


def embeddings(b: Builder, c: GPT2Config, w: Weights, inputs: DecoderInputs, positions: str) -> Value:
    """Token and position vectors, added, [B,S] -> [B,S,D]."""
    words, places = w.shaped(c.embedding, c.vocab_size, c.n_embd), w.shaped(positions, c.n_positions, c.n_embd)
    tokens = embed(b, w.name(c.embedding), words, inputs.input_ids)
    return add(b, tokens, embed(b, w.name(positions), places, inputs.position_ids))


def layer_norm(b: Builder, c: GPT2Config, x: Value, w: Weights) -> Value:
    """[B,S,D] -> [B,S,D]."""
    return norm(b, x, w, c.n_embd, c.eps, bias=c.bias)


def attention(b: Builder, c: GPT2Config, x: Value, w: Weights, inputs: DecoderInputs, layer: int) -> Biased:
    """[B,S,D] -> [B,S,D]."""

    def layer_of(name: str, columns: int) -> tuple[Float, Float | None]:
        bias = w.shaped(f"{name}.bias", columns) if c.bias else None
        return w.shaped(f"{name}.weight", c.n_embd, columns), bias

    qkv, out = layer_of("c_attn", 3 * c.n_embd), layer_of("c_proj", c.n_embd)
    heads = Heads(c.n_head, c.head_size, kv=c.n_head, scale=c.scale(layer))
    return causal_attention(b, x, qkv, out, w, inputs, heads, layer=layer)


def feed_forward(b: Builder, c: GPT2Config, x: Value, w: Weights) -> Biased:
    """[B,S,D] -> [B,S,D] through n_inner."""
    inner = conv1d(b, x, w.under("c_fc"), c.n_embd, c.n_inner, bias=c.bias)
    return conv1d(b, activate(b, inner, c.activation_function), w.under("c_proj"), c.n_inner, c.n_embd, bias=c.bias)


def next_token(b: Builder, c: GPT2Config, w: Weights, rows: Value) -> Outputs:
    """[B,K,D] -> scores of the vocabulary [B,K,V]."""
    if c.tied:
        words = w.shaped(c.embedding, c.vocab_size, c.n_embd)
        w.check_copy("lm_head.weight", words)
        logits = project(b, rows, w.name(c.embedding), words)
    else:
        logits = project(b, rows, "lm_head.weight", w.shaped("lm_head.weight", c.vocab_size, c.n_embd))
    return {"logits": (logits, ["B", "K", c.vocab_size])}


def text_scores(b: Builder, c: GPT2Config, w: Weights, rows: Value) -> Outputs:
    """[B,K,D] -> logits [B,K,L]: of a text's last token, which has read the whole text, they are the text's."""
    h = w.under("score")
    labels = width_of(h)
    return {"logits": (settle(b, linear(b, rows, h, c.n_embd, labels)), ["B", "K", labels])}


def choice_score(b: Builder, c: GPT2Config, w: Weights, rows: Value) -> Outputs:
    """[B,K,D] -> logits [B,K,1]: at the extract token, how well a choice fits (Hugging Face's SequenceSummary)."""
    score = linear(b, rows, w.under("multiple_choice_head.summary"), c.n_embd, 1)
    return {"logits": (activate(b, score, c.summary_activation), ["B", "K", 1])}


HEADS = {
    "LMHeadModel": Head("text-generation", next_token, (r"lm_head\.weight",)),
    "Model": Head("text-generation", next_token, (r"lm_head\.weight",)),
    "ForSequenceClassification": Head("text-classification", text_scores, (r"score\..*",)),
    "DoubleHeadsModel": Head("multiple-choice", choice_score, (r"multiple_choice_head\.summary\..*",)),
}
