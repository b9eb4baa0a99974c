"""Llama (Touvron et al., 2023) and the models of its layout: pre-norm blocks with root-mean-square norms, rotary
positions, grouped heads and a gated feed-forward.

Llama 2 and 3, SmolLM2, TinyLlama; Mistral (a sliding window); Qwen2 and 2.5 (biases on queries, keys and values);
Qwen3 (queries and keys normalized by head). Letters as in parts.py; KV heads of keys and values, I width inside.
The names of weights are the checkpoint's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from torchless.errors import ExportError
from torchless.export.attention import DecoderInputs, Heads, causal_attention
from torchless.export.builder import Builder, Value
from torchless.export.config import Config
from torchless.export.families import Facts
from torchless.export.heads import LABELLED, Head, Outputs, forgive_other_heads, width_of
from torchless.export.parts import Biased, activate, add, embed, linear, pick_rows, project, rms_norm, settle
from torchless.export.rotary import Rotary
from torchless.export.weights import Float, Weights
from torchless.manifest import CacheLayout, Pooling

EMBEDDING = "embed_tokens.weight"
SLIDING = ("sliding_attention", "full_attention")


@dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    context: int
    eps: float
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    normed_heads: bool
    windows: tuple[int | None, ...]  # by layer
    rotary: Rotary

    @classmethod
    def read(cls, c: Config) -> LlamaConfig:
        family = c.text("model_type", "llama")
        qwen2, qwen3 = family == "qwen2", family == "qwen3"
        c.refuse("pretraining_tp", 1)
        c.refuse("quantization_config")
        width, heads = c.whole("hidden_size"), c.whole("num_attention_heads")
        kv = c.whole("num_key_value_heads", 8 if family == "mistral" else 32 if qwen2 or qwen3 else heads)
        size = c.whole("head_dim", 128 if qwen3 else width // heads)
        if heads % kv:
            raise ExportError(
                f"config.json: num_attention_heads={heads} is not a multiple of num_key_value_heads={kv}"
            )
        if size % 2:
            raise ExportError(f"config.json: heads of size {size} have no halves to turn")
        context = c.context("max_position_embeddings")
        bias = c.flag("attention_bias", False)
        return cls(
            vocab_size=c.whole("vocab_size"),
            hidden_size=width,
            intermediate_size=c.whole("intermediate_size"),
            num_hidden_layers=c.whole("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv,
            head_dim=size,
            hidden_act=c.text("hidden_act", "silu"),
            context=context,
            eps=c.number("rms_norm_eps", 1e-6),
            tied=c.flag("tie_word_embeddings", False),
            qkv_bias=qwen2 or (bias and family != "mistral"),
            output_bias=bias and family in ("llama", "qwen3"),
            mlp_bias=family == "llama" and c.flag("mlp_bias", False),
            normed_heads=qwen3,
            windows=_windows(c, family, context),
            rotary=Rotary.read(c, size, context),
        )


def _windows(c: Config, family: str, context: int) -> tuple[int | None, ...]:
    """How many tokens a layer's queries see, by layer; None for all."""
    layers = c.whole("num_hidden_layers")
    slides = family == "mistral" or (family != "llama" and c.flag("use_sliding_window", False))
    if not slides or (family == "mistral" and c.raw.get("sliding_window", 4096) is None):
        return (None,) * layers
    window = c.whole("sliding_window", 4096)
    seen = None if window >= context else window
    if family == "mistral":
        return (seen,) * layers
    kinds: Any = c.raw.get("layer_types")
    if kinds is None:
        first = c.whole("max_window_layers", 28, least=0)
        kinds = [SLIDING[0] if i >= first else SLIDING[1] for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= set(SLIDING):
        raise ExportError(f"config.json: layer_types must name {layers} of {', '.join(SLIDING)}")
    return tuple(seen if kind == SLIDING[0] else None for kind in kinds)


def build(b: Builder, config: Config, weights: Weights, head: Head, pooling: Pooling | None = None) -> Facts:
    """Write the graph of docs/graph.md's decoder contract, with this head."""
    c = LlamaConfig.read(config)
    w = weights.renamed([(r"^model\.", "")])  # the bare body's checkpoints lack it
    w.forgive(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")  # which old checkpoints store
    forgive_other_heads(w, HEADS, head)
    inputs = DecoderInputs.declare(b)
    logits, shape = head.write(b, c, w, llama(b, c, w, inputs))["logits"]
    b.output("logits", logits, np.float32, shape)
    w.check_all_used()
    cache = CacheLayout(c.num_hidden_layers, c.num_key_value_heads, heads_of(c, w, 0).padded)
    return Facts(c.context, c.vocab_size, cache, int(shape[-1]) if head.task in LABELLED else None)


def llama(b: Builder, c: LlamaConfig, w: Weights, inputs: DecoderInputs) -> Value:
    """-> hidden states of the rows asked for [B,K,D]."""
    table = w.shaped(EMBEDDING, c.vocab_size, c.hidden_size)
    x = embed(b, w.name(EMBEDDING), table, inputs.input_ids)
    for i in range(c.num_hidden_layers):
        h = w.under(f"layers.{i}")
        x = add(b, x, attention(b, c, norm(b, c, x, h.under("input_layernorm")), h.under("self_attn"), inputs, i))
        x = add(b, x, feed_forward(b, c, norm(b, c, x, h.under("post_attention_layernorm")), h.under("mlp")))
    return pick_rows(b, norm(b, c, x, w.under("norm")), inputs.logits_positions)


def norm(b: Builder, c: LlamaConfig, x: Value, w: Weights) -> Value:
    """[B,S,D] -> [B,S,D]."""
    return rms_norm(b, x, w, c.hidden_size, c.eps)


def heads_of(c: LlamaConfig, w: Weights, layer: int) -> Heads:
    """How a layer's attention is cut; w holds the norms of Qwen3's heads."""
    norms = None
    if c.normed_heads:
        at = w if "q_norm.weight" in w else w.under(f"layers.{layer}.self_attn")
        norms = at.shaped("q_norm.weight", c.head_dim), at.shaped("k_norm.weight", c.head_dim), c.eps
    return Heads(
        c.num_attention_heads, c.head_dim, kv=c.num_key_value_heads, scale=c.head_dim**-0.5,
        rotary=c.rotary, window=c.windows[layer], norms=norms,
    )  # fmt: skip


def attention(b: Builder, c: LlamaConfig, x: Value, w: Weights, inputs: DecoderInputs, layer: int) -> Biased:
    """[B,S,D] -> [B,S,D]."""
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    parts = {"q_proj": q, "k_proj": kv, "v_proj": kv}
    matrix = np.concatenate([w.shaped(f"{n}.weight", rows, c.hidden_size).T for n, rows in parts.items()], axis=1)
    bias: Float | None = None
    if c.qkv_bias:
        bias = np.concatenate([w.shaped(f"{n}.bias", rows) for n, rows in parts.items()])
    out_bias = w.shaped("o_proj.bias", c.hidden_size) if c.output_bias else None
    out = w.shaped("o_proj.weight", c.hidden_size, q).T, out_bias
    return causal_attention(b, x, (matrix, bias), out, w, inputs, heads_of(c, w, layer), layer=layer)


def feed_forward(b: Builder, c: LlamaConfig, x: Value, w: Weights) -> Biased:
    """down(act(gate(x)) · up(x)) (Shazeer, 2020), [B,S,D] -> [B,S,D] through I; gate and up are one product."""
    names = "gate_proj", "up_proj"
    rows = c.intermediate_size, c.hidden_size
    matrix = np.concatenate([w.shaped(f"{n}.weight", *rows).T for n in names], axis=1)
    bias = ""
    if c.mlp_bias:
        both = np.concatenate([w.shaped(f"{n}.bias", c.intermediate_size) for n in names])
        bias = b.weight(w.name("gate_up.bias"), both)
    wide = settle(b, Biased(b.op("MatMul", x, b.weight(w.name("gate_up.weight"), matrix)), bias))  # [B,S,2I]
    gate, up = b.ops("Split", wide, outputs=2, axis=-1, num_outputs=2)
    inner = b.op("Mul", activate(b, Biased(gate), c.hidden_act), up)
    return linear(b, inner, w.under("down_proj"), c.intermediate_size, c.hidden_size)


def next_token(b: Builder, c: LlamaConfig, w: Weights, rows: Value) -> Outputs:
    """[B,K,D] -> scores of the vocabulary [B,K,V]."""
    name = EMBEDDING if c.tied else "lm_head.weight"
    table = w.shaped(name, c.vocab_size, c.hidden_size)
    if c.tied:
        w.check_copy("lm_head.weight", table)
    return {"logits": (project(b, rows, w.name(name), table), ["B", "K", c.vocab_size])}


def text_scores(b: Builder, c: LlamaConfig, w: Weights, rows: Value) -> Outputs:
    """[B,K,D] -> logits [B,K,L]: of a text's last token, which has read the whole text, they are the text's."""
    h = w.under("score")
    labels = width_of(h)
    return {"logits": (settle(b, linear(b, rows, h, c.hidden_size, labels)), ["B", "K", labels])}


HEADS = {
    "ForCausalLM": Head("text-generation", next_token, (r"lm_head\.weight",)),
    "ForSequenceClassification": Head("text-classification", text_scores, (r"score\..*",)),
}
