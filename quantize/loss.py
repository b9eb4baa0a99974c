"""What a quantized bundle loses, as one number that a budget can hold against it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

import torchless
from torchless.errors import QuantizationError
from torchless.manifest import Manifest
from torchless.quantize.data import Example
from torchless.quantize.quality import Scores, measure_quality
from torchless.quantize.quality.labels import class_ids, label_sets
from torchless.quantize.results import Interval
from torchless.quantize.sensitivity import Progress

Ids = npt.NDArray[np.int64]

MOST = 1_000  # texts that are read
MOST_WINDOWS = 32  # of a language model's context


@dataclass(frozen=True)
class Kind:
    """A way to lose.

    metric: of torchless.quantize.quality. what: for people. share: whether they read it times
    100. of: a model's scores and the first model's -> the loss, 0 for none, less for a gain.
    """

    metric: str
    what: str
    of: Callable[[Scores, Scores], Interval]
    share: bool = True


@dataclass(frozen=True)
class Loss:
    kind: Kind
    interval: Interval

    def __str__(self) -> str:
        value, low, high = self.interval.value, self.interval.low, self.interval.high
        return f"{shown(value, self.kind)} ({shown(low, self.kind)} to {shown(high, self.kind)})"


def shown(value: float, kind: Kind) -> str:
    return f"{round(100 * value, 2) + 0:.2f} %" if kind.share else f"{value:.2g}"  # + 0: never -0.00


def _difference(metric: str) -> Callable[[Scores, Scores], Interval]:
    return lambda scores, _: _map(scores.against[metric], lambda change: 0 - change)


def _change(metric: str) -> Callable[[Scores, Scores], Interval]:
    return lambda scores, _: _map(scores.quality[metric], lambda same: 1 - same)


def _itself(metric: str) -> Callable[[Scores, Scores], Interval]:
    return lambda scores, _: scores.quality[metric]


def _perplexity(scores: Scores, first: Scores) -> Interval:
    before = first.quality["perplexity"].value
    return _map(scores.against["perplexity"], lambda rise: rise / before)


def _masked(scores: Scores, _: Scores) -> Interval:
    return _map(scores.against["mask_loss"], math.expm1)


def _map(interval: Interval, of: Callable[[float], float]) -> Interval:
    one, other = of(interval.low), of(interval.high)
    return Interval(of(interval.value), min(one, other), max(one, other))


def _not_seen(loss: Interval, kind: Kind, examples: int) -> Interval:
    """A share that none of the examples lost may be lost by 3 of N others (the rule of three, see intervals)."""
    exact = kind.share and loss.low == loss.high == 0
    return Interval(0.0, 0.0, min(1.0, 3 / examples)) if exact else loss


# The first whose metric was measured counts.
KINDS = (
    Kind("perplexity", "relative rise of perplexity", _perplexity),
    Kind("mask_loss", "relative rise of the perplexity of masked tokens", _masked),
    *(
        Kind(metric, f"{name} lost", _difference(metric))
        for metric, name in {
            "accuracy": "accuracy",
            "entity_f1": "F1 of entities",
            "tag_accuracy": "accuracy of tags",
            "micro_f1": "F1",
            "answer_f1": "F1 of answers",
            "pearson": "correlation",
        }.items()
    ),
    Kind("agreement", "share of changed answers", _change("agreement")),
    Kind("tag_agreement", "share of changed tags", _change("tag_agreement")),
    Kind("cosine_error", "mean cosine error", _itself("cosine_error"), share=False),
    Kind("distance", "mean change of the score", _itself("distance"), share=False),
)


def measure_losses(
    source: Path, bundles: Sequence[Path], examples: Sequence[Example], progress: Progress
) -> list[Loss]:
    """What each bundle loses against the source on the same examples, at most MOST of them.

    Raises InputError for labels that the model lacks, and QuantizationError where nothing can be measured.
    """
    with contextlib.ExitStack() as stack:
        models = [(str(path), stack.enter_context(torchless.load(path))) for path in (source, *bundles)]
        task = models[0][1].bundle.manifest.task
        limit = MOST_WINDOWS if task == "text-generation" else MOST
        quality = measure_quality(models, examples, limit=limit, progress=partial(progress, "measuring the loss"))
    first, *others = quality.scores
    for kind in KINDS:
        if all(kind.metric in one.quality for one in others):
            return [Loss(kind, _not_seen(kind.of(one, first), kind, quality.examples)) for one in others]
    raise QuantizationError(f"no loss of {task} can be measured: give no data, and no loss that is allowed")


def right_labels(manifest: Manifest, examples: Sequence[Example]) -> list[Ids] | None:
    """What a classifier should say: an id [1] for each text, or 0 or 1 for each label [L]; None where unknown.

    Raises InputError for labels that the model lacks.
    """
    labels = manifest.labels or ()
    known = manifest.task == "text-classification" and len(labels) > 1 and examples[0].label is not None
    if not known or manifest.problem_type == "regression":
        return None
    if manifest.problem_type == "multi_label_classification":
        return list(label_sets(examples, labels).astype(np.int64))
    return list(class_ids([(one.place, one.label) for one in examples], labels)[:, None])
