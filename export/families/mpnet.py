"""MPNet (Song et al., 2020): BERT's blocks, with one bias by distance (T5's buckets) for every layer's attention.

The heads are RoBERTa's.

Letters as in parts.py; C the longest text. The names of weights are the checkpoint's own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from torchless.export.attention import distances
from torchless.export.builder import Builder, Value
from torchless.export.config import Config
from torchless.export.encoder import (
    BlockNames,
    EncoderConfig,
    block,
    embeddings,
    named_as_body,
    positions_after_padding,
    write_encoder,
)
from torchless.export.families import Facts
from torchless.export.families.roberta import HEADS
from torchless.export.heads import EncoderInputs, Head
from torchless.export.weights import Float, Weights
from torchless.manifest import Pooling

BASE = EncoderConfig(vocab_size=30527)
BLOCK = BlockNames(
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    output="attention.attn.o",
    attention_norm="attention.LayerNorm",
)
# transformers fixes both, whatever config.json says.
PADDING = 1
BUCKETS, EXACT, FARTHEST = 32, 8, 128


def build(b: Builder, config: Config, weights: Weights, head: Head, pooling: Pooling | None = None) -> Facts:
    """Write the graph of docs/graph.md's encoder contract, with this head."""
    c = replace(EncoderConfig.read(config, BASE), type_vocab_size=0)
    context_length = config.whole("max_position_embeddings", 512, least=PADDING + 2) - PADDING - 1
    rows = config.whole("relative_attention_num_buckets", BUCKETS, least=BUCKETS)
    w = named_as_body(weights, "mpnet", HEADS, head)
    table = w.under("encoder").shaped("relative_attention_bias.weight", rows, c.num_attention_heads)
    biased = partial(mpnet, table=table, context_length=context_length)
    return write_encoder(b, c, w, biased, head, pooling, segments=False, context_length=context_length)


def mpnet(
    b: Builder, c: EncoderConfig, w: Weights, inputs: EncoderInputs, table: Float, context_length: int
) -> Value:
    """-> hidden states [B,S,D]. table [rows,H]: what each bucket of distances adds for each head."""
    bias = bias_by_distance(b, table, inputs.ids, context_length)
    positions = positions_after_padding(b, inputs.ids, PADDING)
    x = embeddings(b, c, w.under("embeddings"), inputs, positions)
    for i in range(c.num_hidden_layers):
        x = block(b, c, x, w.under(f"encoder.layer.{i}"), inputs.mask, BLOCK, bias)
    return x


def bias_by_distance(b: Builder, table: Float, ids: Value, context_length: int) -> Value:
    """What is added to the score of query i and key j for their distance alone, [1,H,S,S], in every layer.

    table [buckets, H] becomes one of distances, [H, 2C-1]: 49 kB for 12 heads and 512 tokens, where one of
    pairs would be 13 MB. Picking S·S values from it is done once for all layers.
    """
    far = context_length - 1
    by_distance = b.weight("encoder.bias_by_distance", table[buckets(np.arange(-far, far + 1))].T)
    column = b.op("Add", distances(b, ids), b.constant(far, np.int64))  # i - j + C - 1: [S,S]
    return b.op("Unsqueeze", b.op("Gather", by_distance, column, axis=1), b.constant([0], np.int64))


def buckets(distance: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """T5's (Raffel et al., 2020), for query minus key: near distances exact, far ones by logarithm, each way.

    In float32 and in this order of operations, as torch has it: at the edges of a bucket the last bit decides.
    """
    half, far = BUCKETS // 2, np.abs(distance)
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(EXACT)) / np.float32(np.log(FARTHEST / EXACT))
    by_logarithm = EXACT + (ratio * np.float32(half - EXACT)).astype(np.int64)
    bucket = np.where(far < EXACT, far, np.minimum(by_logarithm, half - 1))
    result: npt.NDArray[np.int64] = bucket + half * (distance < 0)
    return result
