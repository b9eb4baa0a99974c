"""DistilBERT (Sanh et al., 2019): BERT's blocks, half as many, over tokens and positions without segments.

Letters as in parts.py. The names of weights are the checkpoint's own.
"""

from __future__ import annotations

from dataclasses import replace

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
from torchless.export.weights import Weights
from torchless.manifest import Pooling

BASE = EncoderConfig(num_hidden_layers=6)
# transformers takes these fields by BERT's names, too.
SECOND_NAMES = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
NAMES = SECOND_NAMES | {"intermediate_size": "hidden_dim", "hidden_act": "activation"}
BLOCK = BlockNames(
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    output="attention.out_lin",
    attention_norm="sa_layer_norm",
    inner="ffn.lin1",
    outer="ffn.lin2",
    output_norm="output_layer_norm",
)


def build(b: Builder, config: Config, weights: Weights, head: Head, pooling: Pooling | None = None) -> Facts:
    """Write the graph of docs/graph.md's encoder contract, with this head."""
    c = EncoderConfig.read(config.renamed(SECOND_NAMES), BASE, NAMES)
    c = replace(c, eps=1e-12, type_vocab_size=0)  # whatever config.json says: transformers does not ask it
    w = named_as_body(weights, "distilbert", HEADS, head)
    return write_encoder(b, c, w, distilbert, head, pooling, segments=False)


def distilbert(b: Builder, c: EncoderConfig, w: Weights, inputs: EncoderInputs) -> Value:
    """-> hidden states [B,S,D]. Sinusoidal positions, where a model has them, are stored like learned ones."""
    x = embeddings(b, c, w.under("embeddings"), inputs)
    for i in range(c.num_hidden_layers):
        x = block(b, c, x, w.under(f"transformer.layer.{i}"), inputs.mask, BLOCK)
    return x


word_scores = masked_words(
    transform="vocab_transform",
    layer_norm="vocab_layer_norm",
    decoder="vocab_projector",
    bias="vocab_projector.bias",
)
text_scores = first_token_scores("pre_classifier", "relu", "classifier")

FIRST, CLASSIFIER = r"pre_classifier\..*", r"classifier\..*"
HEADS = {
    "Model": Head("feature-extraction", body),
    "ForMaskedLM": Head("fill-mask", word_scores, (r"vocab_(transform|layer_norm|projector)\..*",)),
    "ForSequenceClassification": Head("text-classification", text_scores, (FIRST, CLASSIFIER)),
    "ForMultipleChoice": Head("multiple-choice", text_scores, (FIRST, CLASSIFIER)),
    "ForTokenClassification": Head("token-classification", token_scores, (CLASSIFIER,)),
    "ForQuestionAnswering": Head("question-answering", span_scores, (r"qa_outputs\..*",)),
}
