"""RoBERTa (Liu et al., 2019), XLM-RoBERTa and CamemBERT: BERT's blocks, and positions that padding shifts.

Letters as in parts.py. The names of weights are the checkpoint's own.
"""

from __future__ import annotations

from functools import partial

from torchless.errors import ExportError
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
    padding = config.whole("pad_token_id", 1, least=0)
    context_length = c.max_position_embeddings - padding - 1
    if context_length < 1:
        raise ExportError(
            f"config.json: max_position_embeddings={c.max_position_embeddings} leaves no position behind "
            f"pad_token_id={padding}"
        )
    w = named_as_body(weights, "roberta", HEADS, head)
    return write_encoder(
        b, c, w, partial(roberta, padding=padding), head, pooling,
        segments=c.type_vocab_size > 1, context_length=context_length,
    )  # fmt: skip


def roberta(b: Builder, c: EncoderConfig, w: Weights, inputs: EncoderInputs, padding: int) -> Value:
    """-> hidden states [B,S,D]."""
    positions = positions_after_padding(b, inputs.ids, padding)
    x = embeddings(b, c, w.under("embeddings"), inputs, positions)
    for i in range(c.num_hidden_layers):
        x = block(b, c, x, w.under(f"encoder.layer.{i}"), inputs.mask, BLOCK)
    return x


word_scores = masked_words(
    transform="lm_head.dense",
    layer_norm="lm_head.layer_norm",
    decoder="lm_head.decoder",
    bias="lm_head.bias",
    activation="gelu",  # whatever the blocks have
)
text_scores = first_token_scores("classifier.dense", "tanh", "classifier.out_proj")
choice_scores = first_token_scores("pooler.dense", "tanh", "classifier")

POOLED, CLASSIFIER = r"pooler\..*", r"classifier\..*"
HEADS = {
    "Model": Head("feature-extraction", body),
    "ForMaskedLM": Head("fill-mask", word_scores, (r"lm_head\..*",)),
    "ForSequenceClassification": Head("text-classification", text_scores, (CLASSIFIER,)),
    "ForMultipleChoice": Head("multiple-choice", choice_scores, (POOLED, CLASSIFIER)),
    "ForTokenClassification": Head("token-classification", token_scores, (CLASSIFIER,)),
    "ForQuestionAnswering": Head("question-answering", span_scores, (r"qa_outputs\..*",)),
}
