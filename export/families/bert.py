"""BERT (Devlin et al., 2019): post-norm blocks over tokens, learned positions and segments.

Letters as in parts.py. The names of weights are the checkpoint's own.
"""

from __future__ import annotations

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

BASE, BLOCK = EncoderConfig(), BlockNames()


def build(b: Builder, config: Config, weights: Weights, head: Head, pooling: Pooling | None = None) -> Facts:
    """Write the graph of docs/graph.md's encoder contract, with this head."""
    c = EncoderConfig.read(config, BASE)
    w = named_as_body(weights, "bert", HEADS, head)
    return write_encoder(b, c, w, bert, head, pooling, segments=True)


def bert(b: Builder, c: EncoderConfig, w: Weights, inputs: EncoderInputs) -> Value:
    """-> hidden states [B,S,D]."""
    x = embeddings(b, c, w.under("embeddings"), inputs)
    for i in range(c.num_hidden_layers):
        x = block(b, c, x, w.under(f"encoder.layer.{i}"), inputs.mask, BLOCK)
    return x


word_scores = masked_words(
    transform="cls.predictions.transform.dense",
    layer_norm="cls.predictions.transform.LayerNorm",
    decoder="cls.predictions.decoder",
    bias="cls.predictions.bias",
)
text_scores = first_token_scores("pooler.dense", "tanh", "classifier")
next_sentence = first_token_scores("pooler.dense", "tanh", "cls.seq_relationship")

WORDS, POOLED, CLASSIFIER = r"cls\.predictions\..*", r"pooler\..*", r"classifier\..*"
HEADS = {
    "Model": Head("feature-extraction", body),
    "ForPreTraining": Head("fill-mask", word_scores, (WORDS,)),
    "ForMaskedLM": Head("fill-mask", word_scores, (WORDS,)),
    "ForNextSentencePrediction": Head(
        "next-sentence-prediction", next_sentence, (POOLED, r"cls\.seq_relationship\..*"), ("is_next", "random")
    ),
    "ForSequenceClassification": Head("text-classification", text_scores, (POOLED, CLASSIFIER)),
    "ForMultipleChoice": Head("multiple-choice", text_scores, (POOLED, CLASSIFIER)),
    "ForTokenClassification": Head("token-classification", token_scores, (CLASSIFIER,)),
    "ForQuestionAnswering": Head("question-answering", span_scores, (r"qa_outputs\..*",)),
}
