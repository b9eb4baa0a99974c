"""ELECTRA (Clark et al., 2020): BERT's blocks behind narrow embeddings; a generator, and what tells its words.

Letters as in parts.py, W width of the embeddings. The names of weights are the checkpoint's own.
"""

from __future__ import annotations

import numpy as np

from torchless.export.builder import Builder, Value
from torchless.export.config import Config
from torchless.export.encoder import BlockNames, EncoderConfig, block, embeddings, named_as_body, write_encoder
from torchless.export.families import Facts
from torchless.export.heads import (
    EncoderInputs,
    Head,
    Outputs,
    body,
    dense,
    first_token_scores,
    masked_words,
    span_scores,
    token_scores,
)
from torchless.export.parts import Biased, linear, settle
from torchless.export.weights import Weights
from torchless.manifest import Pooling

BASE = EncoderConfig(embedding_size=128, hidden_size=256, num_attention_heads=4, intermediate_size=1024)
BLOCK = BlockNames()


def build(b: Builder, config: Config, weights: Weights, head: Head, pooling: Pooling | None = None) -> Facts:
    """Write the graph of docs/graph.md's encoder contract, with this head."""
    c = EncoderConfig.read(config, BASE)
    if head.task == "multiple-choice":  # the one head that these fields shape: as released, or not at all
        config.refuse("summary_type", "first")
        config.refuse("summary_use_proj", True)
        config.refuse("summary_activation", "gelu")
        config.refuse("summary_proj_to_labels", False)
    w = named_as_body(weights, "electra", HEADS, head)
    return write_encoder(b, c, w, electra, head, pooling, segments=True)


def electra(b: Builder, c: EncoderConfig, w: Weights, inputs: EncoderInputs) -> Value:
    """-> hidden states [B,S,D]."""
    x = embeddings(b, c, w.under("embeddings"), inputs)  # [B,S,W]
    if c.embedding_size != c.hidden_size:
        x = settle(b, linear(b, x, w.under("embeddings_project"), c.embedding_size, c.hidden_size))
    for i in range(c.num_hidden_layers):
        x = block(b, c, x, w.under(f"encoder.layer.{i}"), inputs.mask, BLOCK)
    return x


def replaced_tokens(b: Builder, c: EncoderConfig, w: Weights, x: Value) -> Outputs:
    """[B,S,D] -> logits [B,S,2]: 0 for a token of the text, the discriminator's score z for one put in its place.

    So softmax gives 1 - sigmoid(z) and sigmoid(z).
    """
    h = w.under("discriminator_predictions")
    x = dense(b, x, h.under("dense"), c.hidden_size, c.hidden_size, c.hidden_act)
    z = h.under("dense_prediction")
    matrix = np.pad(z.shaped("weight", 1, c.hidden_size).T, [(0, 0), (1, 0)])  # [D,2]
    bias = np.pad(z.shaped("bias", 1), [(1, 0)])
    product = b.op("MatMul", x, b.weight(z.name("weight"), matrix))
    return {"logits": (settle(b, Biased(product, b.weight(z.name("bias"), bias))), ["B", "S", 2])}


word_scores = masked_words(
    transform="generator_predictions.dense",
    layer_norm="generator_predictions.LayerNorm",
    decoder="generator_lm_head",
    bias="generator_lm_head.bias",
    activation="gelu",  # whatever the blocks have
)
text_scores = first_token_scores("classifier.dense", "gelu", "classifier.out_proj")
choice_scores = first_token_scores("sequence_summary.summary", "gelu", "classifier")

GENERATOR = (r"generator_predictions\..*", r"generator_lm_head\..*")
DISCRIMINATOR, SUMMARY, CLASSIFIER = r"discriminator_predictions\..*", r"sequence_summary\..*", r"classifier\..*"
HEADS = {
    "Model": Head("feature-extraction", body),
    "ForMaskedLM": Head("fill-mask", word_scores, GENERATOR),
    "ForSequenceClassification": Head("text-classification", text_scores, (CLASSIFIER,)),
    "ForMultipleChoice": Head("multiple-choice", choice_scores, (SUMMARY, CLASSIFIER)),
    "ForTokenClassification": Head("token-classification", token_scores, (CLASSIFIER,)),
    "ForPreTraining": Head("token-classification", replaced_tokens, (DISCRIMINATOR,), ("original", "replaced")),
    "ForQuestionAnswering": Head("question-answering", span_scores, (r"qa_outputs\..*",)),
}
