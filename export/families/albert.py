"""ALBERT (Lan et al., 2020): narrow embeddings, and blocks that the layers of a group share.

Letters as in parts.py, W width of the embeddings. The names of weights are the checkpoint's own.
"""

from __future__ import annotations

from functools import partial

from torchless.errors import ExportError
from torchless.export.builder import Builder, Value
from torchless.export.config import Config
from torchless.export.encoder import BlockNames, EncoderConfig, block, embeddings, named_as_body, write_encoder
from torchless.export.families import Facts
from torchless.export.heads import (
    EncoderInputs,
    Head,
    body,
    first_token_scores,
    masked_words,
    span_scores,
    token_scores,
)
from torchless.export.parts import linear, settle
from torchless.export.weights import Weights
from torchless.manifest import Pooling

BASE = EncoderConfig(
    vocab_size=30000,
    embedding_size=128,
    hidden_size=4096,
    num_attention_heads=64,
    intermediate_size=16384,
    hidden_act="gelu_new",
)
BLOCK = BlockNames(
    query="attention.query",
    key="attention.key",
    value="attention.value",
    output="attention.dense",
    attention_norm="attention.LayerNorm",
    inner="ffn",
    outer="ffn_output",
    output_norm="full_layer_layer_norm",
)


def build(b: Builder, config: Config, weights: Weights, head: Head, pooling: Pooling | None = None) -> Facts:
    """Write the graph of docs/graph.md's encoder contract, with this head."""
    c = EncoderConfig.read(config, BASE)
    groups, blocks = config.whole("num_hidden_groups", 1), config.whole("inner_group_num", 1)
    if groups > c.num_hidden_layers:
        raise ExportError(
            f"config.json: num_hidden_groups={groups} is more than num_hidden_layers={c.num_hidden_layers}"
        )
    w = named_as_body(weights, "albert", HEADS, head)
    w.forgive(r"sop_classifier\..*")  # the order of sentences, which no class of transformers answers alone
    shared = partial(albert, groups=groups, blocks=blocks)
    return write_encoder(b, c, w, shared, head, pooling, segments=True)


def albert(b: Builder, c: EncoderConfig, w: Weights, inputs: EncoderInputs, groups: int, blocks: int) -> Value:
    """-> hidden states [B,S,D]. A layer is all blocks of its group; what layers share is stored once."""
    x = embeddings(b, c, w.under("embeddings"), inputs)  # [B,S,W]
    x = settle(b, linear(b, x, w.under("encoder.embedding_hidden_mapping_in"), c.embedding_size, c.hidden_size))
    for i in range(c.num_hidden_layers):
        number = int(i / (c.num_hidden_layers / groups))  # divided as transformers does: the last bit can decide
        group = w.under(f"encoder.albert_layer_groups.{number}")
        for j in range(blocks):
            x = block(b, c, x, group.under(f"albert_layers.{j}"), inputs.mask, BLOCK)
    return x


word_scores = masked_words(
    transform="predictions.dense",
    layer_norm="predictions.LayerNorm",
    decoder="predictions.decoder",
    bias="predictions.bias",
)
text_scores = first_token_scores("pooler", "tanh", "classifier")

WORDS, POOLED, CLASSIFIER = r"predictions\..*", r"pooler\..*", r"classifier\..*"
HEADS = {
    "Model": Head("feature-extraction", body),
    "ForPreTraining": Head("fill-mask", word_scores, (WORDS,)),
    "ForMaskedLM": Head("fill-mask", word_scores, (WORDS,)),
    "ForSequenceClassification": Head("text-classification", text_scores, (POOLED, CLASSIFIER)),
    "ForMultipleChoice": Head("multiple-choice", text_scores, (POOLED, CLASSIFIER)),
    "ForTokenClassification": Head("token-classification", token_scores, (CLASSIFIER,)),
    "ForQuestionAnswering": Head("question-answering", span_scores, (r"qa_outputs\..*",)),
}
