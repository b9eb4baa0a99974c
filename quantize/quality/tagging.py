"""token-classification: entities in tagged words, by seqeval, and how many tokens are tagged as by the first model.

A word has the tag of its first token, as in the training of transformers. T tokens, L labels, N texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchless.batching import Batching
from torchless.quantize.data import Example
from torchless.quantize.extra import import_extra
from torchless.quantize.intervals import Measure, linear, mean
from torchless.quantize.quality.alike import same_labels, same_tokens
from torchless.quantize.quality.classification import KL, divergence, micro_f1
from torchless.quantize.quality.labels import class_ids
from torchless.quantize.quality.watch import Watch
from torchless.quantize.results import Metric
from torchless.sampling import check_numbers, log_softmax
from torchless.tasks.entities import content
from torchless.tasks.token_classification import TokenClassification

if TYPE_CHECKING:
    from tokenizers import Encoding

Float = npt.NDArray[np.float32]
Tags = list[str]

ENTITY_F1 = Metric("entity_f1", "F1 of entities (seqeval)", "higher", percent=True)
TAG_ACCURACY = Metric("tag_accuracy", "words with the right tag", "higher", percent=True)
TAG_AGREEMENT = Metric("tag_agreement", "tokens tagged as by the first", "higher", percent=True)

PREFIXED = ("B-", "I-", "E-", "S-", "L-", "U-")


def measure_tagging(
    models: Sequence[TokenClassification], examples: Sequence[Example], watch: Watch
) -> list[list[Measure]]:
    """Each model's measures. Raises InputError for models of unlike labels or tokens, and tags that they lack."""
    labels = same_labels(models)
    same_tokens(models, examples)
    truth = _truth(examples, labels)
    watch.begin(len(models) * len(examples))
    first: list[Float] = []
    measured = []
    for number, model in enumerate(models):
        encodings, found = tag(model, examples, watch, count=not number)
        measures = []
        if truth is not None:
            words = [word_tokens(e.words, one) for e, one in zip(examples, encodings, strict=True)]
            guesses = [guess(rows, places, labels) for rows, places in zip(found, words, strict=True)]
            measures += right(guesses, [tags[: len(one)] for tags, one in zip(truth, guesses, strict=True)], labels)
        if number:
            measures += closeness(first, found)
        else:
            first = found
        measured.append(measures)
    watch.tell_cut(models[0], examples)
    return measured


def tag(
    model: TokenClassification, examples: Sequence[Example], watch: Watch, *, count: bool
) -> tuple[list[Encoding], list[Float]]:
    """Of each text its encoding, and the log-probabilities [T,L] of its tokens, special ones included."""
    encodings, found = [], []
    for block in watch.blocks(examples):
        read = [watch.encode(model, example.text, count=count) for example in block]
        rows: list[Any] = [None] * len(read)
        for index, logits in model.runner(read, Batching()):
            check_numbers(logits)
            rows[index] = log_softmax(logits)
        encodings += read
        found += rows
    return encodings, found


def word_tokens(words: Sequence[str], encoding: Encoding) -> list[int | None]:
    """The first token of each word of the text that they make with spaces, up to the first that was cut off.

    None for a word that the tokenizer leaves out, such as one of control characters.
    """
    inside, offsets = content(encoding), encoding.offsets
    found: list[int | None] = []
    end, at = -1, 0
    for word in words:
        start, end = end + 1, end + 1 + len(word)
        while at < len(inside) and offsets[inside[at]][1] <= start:
            at += 1
        if at == len(inside):
            break
        found.append(inside[at] if offsets[inside[at]][0] < end else None)
    return found


def guess(rows: Float, places: Sequence[int | None], labels: Sequence[str]) -> Tags:
    """The likeliest tag of each word; what has no token is outside of entities."""
    return ["O" if place is None else labels[int(rows[place].argmax())] for place in places]


def right(guesses: Sequence[Tags], truth: Sequence[Tags], labels: Sequence[str]) -> list[Measure]:
    """Accuracy of the tags and, where labels have prefixes such as B- and I-, F1 of the entities."""
    pairs = list(zip(guesses, truth, strict=True))
    hits = [sum(one == other for one, other in zip(*pair, strict=True)) for pair in pairs]
    measures = [mean(TAG_ACCURACY, hits, [len(tags) for tags in truth])]
    if any(label.startswith(PREFIXED) for label in labels):
        entities = _entities(labels)
        sets = [(entities(one), entities(other)) for one, other in pairs]
        sums = [(len(one & other), len(one), len(other)) for one, other in sets]
        measures.insert(0, linear(ENTITY_F1, sums, micro_f1, _f1(guesses, truth, labels)))
    return measures


def closeness(first: Sequence[Float], found: Sequence[Float]) -> list[Measure]:
    """Of log-probabilities [T,L] of each text."""
    pairs, tokens = list(zip(first, found, strict=True)), [len(rows) for rows in found]
    same = [(one.argmax(axis=1) == other.argmax(axis=1)).sum() for one, other in pairs]
    return [
        mean(TAG_AGREEMENT, same, tokens),
        mean(KL, [divergence(one, other).sum() for one, other in pairs], tokens),
    ]


def _truth(examples: Sequence[Example], labels: Sequence[str]) -> list[Tags] | None:
    if examples[0].tags is None:
        return None
    placed = [(example.place, tag) for example in examples for tag in example.tags or ()]
    names = iter([labels[index] for index in class_ids(placed, labels)])
    return [[next(names) for _ in example.words] for example in examples]


def _bilou(labels: Sequence[str]) -> bool:
    """Whether entities end with L- and U-; seqeval's default reads the other schemes as conlleval does."""
    return any(label.startswith(("L-", "U-")) for label in labels)


def _entities(labels: Sequence[str]) -> Callable[[Tags], set[Any]]:
    if _bilou(labels):
        scheme = import_extra("seqeval.scheme")
        return lambda tags: {one.to_tuple() for one in scheme.Tokens(tags, scheme.BILOU).entities}
    get_entities = import_extra("seqeval.metrics.sequence_labeling").get_entities
    return lambda tags: set(get_entities(tags))


def _f1(guesses: Sequence[Tags], truth: Sequence[Tags], labels: Sequence[str]) -> float:
    strict = {"mode": "strict", "scheme": import_extra("seqeval.scheme").BILOU} if _bilou(labels) else {}
    return float(import_extra("seqeval.metrics").f1_score(list(truth), list(guesses), zero_division=0, **strict))
