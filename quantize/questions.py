"""What a model is asked to see how far a changed graph is off: a few rows of tokens, and where to look at them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchless.bundle import Bundle
from torchless.errors import InputError
from torchless.manifest import Graph, Manifest
from torchless.quantize.calibrate import Calibration, Row, rows_of
from torchless.quantize.data import SEED, Example, sample
from torchless.quantize.loss import right_labels
from torchless.text import TOKENIZER, Tokenizer

Ids = npt.NDArray[np.int64]

TOKENS = 2048  # in all: a matrix of BERT-base then takes two seconds
VALUES = 1 << 24  # log-probabilities that are kept: 64 MB
HIDDEN = 0.15  # of the tokens that a masked language model is asked for


@dataclass(frozen=True)
class Question:
    """A row; the places whose tokens are asked for (language models, else none), and what is right, if known.

    truth: an id for each place; of a classifier its label's, or 0 or 1 for each of several labels.
    """

    row: Row
    places: tuple[int, ...] = ()
    truth: Ids | None = None


def questions(bundle: Bundle, graph: Graph, examples: Sequence[Example] | None) -> list[Question]:
    """Some of the examples, drawn at random but always the same; without any, random tokens.

    Raises InputError for examples without a token, and for labels that the model lacks.
    """
    manifest = bundle.manifest
    task = manifest.task
    if examples is None:
        random = Calibration.random(bundle, graph).rows
        asks = task in ("text-generation", "fill-mask")
        return _fewer([Question(row, tuple(range(len(row.input_ids))) if asks else ()) for row in random], manifest)
    if task == "text-generation":
        rows = rows_of(bundle, [example.given for example in examples])
        longest = max(len(row.input_ids) for row in rows)
        rows = [row for row in sample(rows, max(1, TOKENS // longest)) if len(row.input_ids) > 1]
        asked = [_next_tokens(row) for row in rows]
    else:
        asked = list(_of_encoder(bundle, examples))
    if not asked:
        raise InputError("the data has no text of two tokens, so there is nothing to ask for: give longer texts")
    return _fewer(asked, manifest)


def _next_tokens(row: Row) -> Question:
    return Question(row, tuple(range(len(row.input_ids) - 1)), np.array(row.input_ids[1:]))


def _of_encoder(bundle: Bundle, examples: Sequence[Example]) -> Iterator[Question]:
    """Whole texts until there are TOKENS, each cut to the context."""
    manifest = bundle.manifest
    tokenizer = Tokenizer.read(bundle.file(TOKENIZER))
    truth = right_labels(manifest, examples)
    generator = np.random.default_rng(SEED)
    tokens = 0
    for index in generator.permutation(len(examples)):
        encoding = tokenizer.encode(examples[index].given)
        if len(encoding.ids) > manifest.context_length:
            encoding = tokenizer.windows(examples[index].given, manifest.context_length)[0]
        row = Row(list(encoding.ids), list(encoding.type_ids))
        if manifest.task == "fill-mask":
            asked = _hide(row, manifest, generator)
        else:
            asked = Question(row, truth=None if truth is None else truth[index])
        if row.input_ids and (asked.places or manifest.task != "fill-mask"):
            tokens += len(row.input_ids)
            yield asked
        if tokens >= TOKENS:
            return


def _hide(row: Row, manifest: Manifest, generator: np.random.Generator) -> Question:
    """HIDDEN of the tokens that are not special replaced by the mask, one at least."""
    special = {one for ids in manifest.special_tokens.values() for one in (ids if isinstance(ids, list) else [ids])}
    mask = manifest.special_tokens.get("mask")
    places = [place for place, token in enumerate(row.input_ids) if token not in special]
    if not places or not isinstance(mask, int):
        return Question(row, tuple(range(len(row.input_ids))))
    count = max(1, round(HIDDEN * len(places)))
    chosen = sorted(generator.choice(places, count, replace=False).tolist())
    ids = list(row.input_ids)
    for place in chosen:
        ids[place] = mask
    return Question(Row(ids, row.token_type_ids), tuple(chosen), np.array(row.input_ids)[chosen])


def _fewer(asked: Sequence[Question], manifest: Manifest) -> list[Question]:
    """The same rows; of their places every n-th, so that no more than VALUES numbers come out."""
    step = -(-sum(len(one.places) for one in asked) * manifest.vocab_size // VALUES)
    if step <= 1:
        return list(asked)
    return [
        Question(one.row, one.places[::step], None if one.truth is None else one.truth[::step])
        if one.places
        else one
        for one in asked
    ]
