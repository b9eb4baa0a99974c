"""GPT-1 (Radford et al., 2018): post-norm blocks, learned positions, a head that is tied to the embedding.

The parts of its blocks and its heads are those that GPT-2 kept. Letters as in parts.py; the names of weights are
the checkpoint's own.
"""

from __future__ import annotations

from torchless.errors import ExportError
from torchless.export.attention import DecoderInputs
from torchless.export.builder import Builder, Value
from torchless.export.config import Config
from torchless.export.families import Facts
from torchless.export.families.gpt2 import (
    HEADS,
    PREFIX,
    SECOND_NAMES,
    GPT2Config,
    attention,
    embeddings,
    feed_forward,
    layer_norm,
    shared_fields,
    write_decoder,
)
from torchless.export.heads import Head
from torchless.export.parts import add, pick_rows
from torchless.export.weights import Weights
from torchless.manifest import Pooling

__all__ = ["HEADS", "build", "openai_gpt"]

# What the config calls "gelu" is the tanh form, here alone.
ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}
EMBEDDING = "tokens_embed.weight"


def read_config(c: Config) -> GPT2Config:
    """GPT-1's config in the terms of GPT-2's, which added options and renamed a field."""
    c = c.renamed(SECOND_NAMES)
    shared, activation = shared_fields(c, vocab_size=40478, n_positions=512), c.text("afn", "gelu")
    if activation not in ACTIVATIONS:
        raise ExportError(f"config.json: afn={activation!r} is not supported (supported: {', '.join(ACTIVATIONS)})")
    return GPT2Config(
        **shared,
        n_inner=4 * shared["n_embd"],
        activation_function=ACTIVATIONS[activation],
        scale_by_size=True,
        scale_by_layer=False,
        bias=True,
        embedding=EMBEDDING,
    )


def build(b: Builder, config: Config, weights: Weights, head: Head, pooling: Pooling | None = None) -> Facts:
    """Write the graph of docs/graph.md's decoder contract, with this head."""
    c, w = read_config(config), weights.renamed(PREFIX)
    if c.tied and EMBEDDING not in w:  # OpenAIGPTDoubleHeadsModel saves the other of the two tied names
        w = w.renamed([(r"^lm_head\.weight$", EMBEDDING)])
    w.forgive("position_ids")
    return write_decoder(b, config, c, w, head, openai_gpt)


def openai_gpt(b: Builder, c: GPT2Config, w: Weights, inputs: DecoderInputs) -> Value:
    """-> hidden states of the rows asked for [B,K,D]."""
    x = embeddings(b, c, w, inputs, "positions_embed.weight")  # [B,S,D]
    for i in range(c.n_layer):
        h = w.under(f"h.{i}")
        x = layer_norm(b, c, add(b, x, attention(b, c, x, h.under("attn"), inputs, i)), h.under("ln_1"))
        x = layer_norm(b, c, add(b, x, feed_forward(b, c, x, h.under("mlp"))), h.under("ln_2"))
    return pick_rows(b, x, inputs.logits_positions)
