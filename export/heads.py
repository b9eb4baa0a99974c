"""What stands on a model's hidden states: how a head is declared and written, and those that families share.

Letters as in parts.py; L labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchless.errors import ExportError
from torchless.export.builder import Builder, Value
from torchless.export.parts import activate, linear, norm, project, settle
from torchless.export.pooling import pool
from torchless.export.weights import Weights
from torchless.manifest import Pooling

Outputs = dict[str, tuple[Value, list[int | str]]]  # by name: the value and its shape
Write = Callable[[Builder, Any, Weights, Value], Outputs]  # builder, the family's config, weights, hidden states


@dataclass(frozen=True)
class Head:
    """The head of one Hugging Face class: its task, how it is written, and which weights are its own."""

    task: str
    write: Write
    reads: tuple[str, ...] = ()  # patterns of weights' names; those of other heads may stay unused
    labels: tuple[str, ...] = ()  # where the task fixes them, instead of the config's id2label

    @property
    def layer(self) -> str:
        """The name of its last layer, which a user's own module may call otherwise; "" for no single one."""
        plain = re.fullmatch(r"((?:\w|\\\.)+)\\\.(?:\.\*|weight)", self.reads[-1]) if self.reads else None
        return plain[1].replace("\\.", ".") if plain else ""


def forgive_other_heads(w: Weights, heads: Mapping[str, Head], head: Head) -> None:
    """A checkpoint may hold the weights of heads that are not exported."""
    w.forgive(*{pattern for other in heads.values() for pattern in other.reads} - set(head.reads))


@dataclass(frozen=True)
class EncoderInputs:
    """The graph inputs of an encoder (docs/graph.md), each int64 [B,S]."""

    ids: Value
    mask: Value  # 1 for a token, 0 for padding
    types: Value  # segments; "" for a family without them

    @classmethod
    def declare(cls, b: Builder, *, segments: bool) -> EncoderInputs:
        ids, mask = (b.input(name, np.int64, ["B", "S"]) for name in ("input_ids", "attention_mask"))
        return cls(ids, mask, b.input("token_type_ids", np.int64, ["B", "S"]) if segments else "")


def write_head(
    b: Builder, c: Any, w: Weights, x: Value, mask: Value, head: Head, pooling: Pooling | None, size: int
) -> int | None:
    """Publish what the head makes of an encoder's hidden states [B,S,size]; the number of labels, if it has any.

    Every weight of the checkpoint has to have found its place by then.
    """
    if head.task == "feature-extraction":
        sentence = pool(b, x, mask, pooling or Pooling("mean", normalize=False))
        outputs: Outputs = {
            "last_hidden_state": (x, ["B", "S", size]),
            "sentence_embedding": (sentence, ["B", size]),
        }
    else:
        outputs = head.write(b, c, w, x)
    for name, (value, shape) in outputs.items():
        b.output(name, value, np.float32, shape)
    w.check_all_used()
    columns = outputs["logits"][1][-1] if "logits" in outputs else None
    return columns if isinstance(columns, int) and head.task in LABELLED else None


LABELLED = ("text-classification", "token-classification", "next-sentence-prediction")


def body(b: Builder, c: Any, w: Weights, x: Value) -> Outputs:
    """No head: write_head pools the hidden states."""
    raise AssertionError("feature-extraction has no head to write")


def width_of(w: Weights) -> int:
    """How many columns a linear layer has: of a classifier, the number of labels."""
    matrix = w["weight"]
    if matrix.ndim != 2:
        raise ExportError(f"{w.name('weight')} has shape {list(matrix.shape)}, expected two dimensions")
    return int(matrix.shape[0])


def first_token(b: Builder, x: Value) -> Value:
    """[B,S,D] -> [B,D]."""
    return b.op("Gather", x, b.constant(0, np.int64), axis=1)


def dense(b: Builder, x: Value, w: Weights, inputs: int, outputs: int, activation: str) -> Value:
    """A linear layer and its activation, [..,inputs] -> [..,outputs]."""
    return activate(b, linear(b, x, w, inputs, outputs), activation)


def scores(b: Builder, x: Value, w: Weights, inputs: int, columns: int) -> Outputs:
    """The last linear layer of a classifier over one vector a text, [B,inputs] -> logits [B,columns]."""
    return {"logits": (settle(b, linear(b, x, w, inputs, columns)), ["B", columns])}


def first_token_scores(hidden: str, activation: str, last: str) -> Write:
    """The first token's state through the layer `hidden`, its activation, and the layer `last` to the labels."""

    def write(b: Builder, c: Any, w: Weights, x: Value) -> Outputs:
        """[B,S,D] -> logits [B,L]."""
        text = dense(b, first_token(b, x), w.under(hidden), c.hidden_size, c.hidden_size, activation)
        return scores(b, text, w.under(last), c.hidden_size, width_of(w.under(last)))

    return write


def masked_words(
    *, transform: str, layer_norm: str, decoder: str, bias: str, activation: str | None = None
) -> Write:
    """Every token's state through the layer `transform`, normalized, against the table of words.

    activation: by default that of the blocks. bias: the head's own name for the decoder's.
    """

    def write(b: Builder, c: Any, w: Weights, x: Value) -> Outputs:
        """[B,S,D] -> scores of the vocabulary [B,S,V]."""
        size = c.embedding_size
        x = dense(b, x, w.under(transform), c.hidden_size, size, activation or c.hidden_act)
        x = norm(b, x, w.under(layer_norm), size, c.eps)
        # An untied head has a matrix and a bias of its own; a tied one may come with copies of those it shares.
        matrix, own = f"{decoder}.weight", f"{decoder}.bias"
        name = "embeddings.word_embeddings.weight" if c.tied else matrix
        chosen = own if own in w and not (c.tied and bias in w) else bias
        table, shift = w.shaped(name, c.vocab_size, size), w.shaped(chosen, c.vocab_size)
        if c.tied:
            w.check_copy(matrix, table)
            w.check_copy(own, shift)
        w.forgive(re.escape(bias))
        logits = b.op("Add", project(b, x, name, table), b.weight(chosen, shift))
        return {"logits": (logits, ["B", "S", c.vocab_size])}

    return write


def token_scores(b: Builder, c: Any, w: Weights, x: Value) -> Outputs:
    """`classifier` over every token, [B,S,D] -> logits [B,S,L]."""
    h = w.under("classifier")
    labels = width_of(h)
    return {"logits": (settle(b, linear(b, x, h, c.hidden_size, labels)), ["B", "S", labels])}


def span_scores(b: Builder, c: Any, w: Weights, x: Value, layer: str = "qa_outputs") -> Outputs:
    """A layer over every token: how well an answer starts, and ends, here; each [B,S]."""
    pairs = settle(b, linear(b, x, w.under(layer), c.hidden_size, 2))  # [B,S,2]
    start, end = (b.op("Gather", pairs, b.constant(i, np.int64), axis=-1) for i in range(2))
    return {"start_logits": (start, ["B", "S"]), "end_logits": (end, ["B", "S"])}
