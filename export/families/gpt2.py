"""GPT-2 (Radford et al., 2019): pre-norm blocks, learned positions, a head that is tied to the embedding.

Letters as in parts.py. The names of weights are the checkpoint's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchless.bundle import CacheLayout, Pooling
from torchless.errors import ExportError
from torchless.export.attention import DecoderInputs, causal_attention, padded_head
from torchless.export.builder import Builder, Value
from torchless.export.config import Config
from torchless.export.families import Facts
from torchless.export.heads import LABELLED, Head, Outputs, forgive_other_heads
from torchless.export.parts import Biased, Pending, activate, add, conv1d, embed, norm, pick_rows, project
from torchless.export.weights import Weights

# transformers takes the fields by these names, too.
SECOND_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


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

    @classmethod
    def read(cls, c: Config) -> GPT2Config:
        c = c.renamed(SECOND_NAMES)
        c.refuse("add_cross_attention", False)
        c.refuse("is_encoder_decoder", False)
        c.refuse("pruned_heads", {})
        c.refuse("quantization_config")
        width = c.whole("n_embd", 768)
        if width % (heads := c.whole("n_head", 12)):
            raise ExportError(f"config.json: n_embd={width} is not a multiple of n_head={heads}")
        return cls(
            vocab_size=c.whole("vocab_size", 50257),
            n_positions=c.whole("n_positions", 1024),
            n_embd=width,
            n_layer=c.whole("n_layer", 12),
            n_head=heads,
            n_inner=c.whole("n_inner", 4 * width),
            activation_function=c.text("activation_function", "gelu_new"),
            eps=c.number("layer_norm_epsilon", 1e-5),
            tied=c.flag("tie_word_embeddings", True),
            scale_by_size=c.flag("scale_attn_weights", True),
            scale_by_layer=c.flag("scale_attn_by_inverse_layer_idx", False),
        )

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    def scale(self, layer: int) -> float:
        by_size = self.head_size**-0.5 if self.scale_by_size else 1.0
        return by_size / (layer + 1) if self.scale_by_layer else by_size


def build(b: Builder, config: Config, weights: Weights, head: Head, pooling: Pooling | None = None) -> Facts:
    """Write the graph of docs/graph.md's decoder contract, with this head."""
    c = GPT2Config.read(config)
    w = weights.renamed([(r"^transformer\.", "")])
    w.forgive(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, which old checkpoints store
    forgive_other_heads(w, HEADS, head)
    inputs = DecoderInputs.declare(b)
    logits, shape = head.write(b, c, w, gpt2(b, c, w, inputs))["logits"]
    b.output("logits", logits, np.float32, shape)
    w.check_all_used()
    labels = int(shape[-1]) if head.task in LABELLED else None
    return Facts(c.n_positions, c.vocab_size, CacheLayout(c.n_layer, c.n_head, padded_head(c.head_size)), labels)


def gpt2(b: Builder, c: GPT2Config, w: Weights, inputs: DecoderInputs) -> Value:
    """-> hidden states of the rows asked for [B,K,D]."""
    tokens = embed(b, w.name("wte.weight"), w.shaped("wte.weight", c.vocab_size, c.n_embd), inputs.input_ids)
    wpe = w.shaped("wpe.weight", c.n_positions, c.n_embd)
    x: Pending = add(b, tokens, embed(b, w.name("wpe.weight"), wpe, inputs.position_ids))  # [B,S,D]
    for i in range(c.n_layer):
        h = w.under(f"h.{i}")
        x = add(b, x, attention(b, c, norm(b, x, h.under("ln_1"), c.n_embd, c.eps), h.under("attn"), inputs, i))
        x = add(b, x, feed_forward(b, c, norm(b, x, h.under("ln_2"), c.n_embd, c.eps), h.under("mlp")))
    return pick_rows(b, norm(b, x, w.under("ln_f"), c.n_embd, c.eps), inputs.logits_positions)


def attention(b: Builder, c: GPT2Config, x: Value, w: Weights, inputs: DecoderInputs, layer: int) -> Biased:
    """[B,S,D] -> [B,S,D]."""
    d = c.n_embd
    qkv = w.shaped("c_attn.weight", d, 3 * d), w.shaped("c_attn.bias", 3 * d)
    out = w.shaped("c_proj.weight", d, d), w.shaped("c_proj.bias", d)
    return causal_attention(
        b, x, qkv, out, w, inputs, heads=c.n_head, size=c.head_size, scale=c.scale(layer), layer=layer
    )


def feed_forward(b: Builder, c: GPT2Config, x: Value, w: Weights) -> Biased:
    """[B,S,D] -> [B,S,D] through n_inner."""
    inner = activate(b, conv1d(b, x, w.under("c_fc"), c.n_embd, c.n_inner), c.activation_function)
    return conv1d(b, inner, w.under("c_proj"), c.n_inner, c.n_embd)


def next_token(b: Builder, c: GPT2Config, w: Weights, rows: Value) -> Outputs:
    """[B,K,D] -> scores of the vocabulary [B,K,V]."""
    wte = w.shaped("wte.weight", c.vocab_size, c.n_embd)
    if c.tied:
        w.check_copy("lm_head.weight", wte)
        logits = project(b, rows, w.name("wte.weight"), wte)
    else:
        logits = project(b, rows, "lm_head.weight", w.shaped("lm_head.weight", c.vocab_size, c.n_embd))
    return {"logits": (logits, ["B", "K", c.vocab_size])}


HEADS = {
    "LMHeadModel": Head("text-generation", next_token, (r"lm_head\.weight",)),
    "Model": Head("text-generation", next_token, (r"lm_head\.weight",)),
}
