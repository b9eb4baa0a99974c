"""How good each of several bundles is on the same examples, and how it differs from the first of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchless.errors import InputError
from torchless.model import Model
from torchless.quantize.data import Example, sample
from torchless.quantize.intervals import Measure, estimate
from torchless.quantize.quality.answering import measure_answers, measure_choices
from torchless.quantize.quality.classification import measure_classification
from torchless.quantize.quality.embedding import measure_embedding
from torchless.quantize.quality.language import measure_language
from torchless.quantize.quality.masked import measure_masked
from torchless.quantize.quality.tagging import measure_tagging
from torchless.quantize.quality.watch import Watch
from torchless.quantize.results import Interval, Metric
from torchless.tasks import TASKS

FEW = 30  # examples, below which an interval is a rough guess

Measuring = Callable[[Sequence[Any], Sequence[Example], Watch], list[list[Measure]]]

MEASURED: dict[str, Measuring] = {
    "text-classification": measure_classification,
    "next-sentence-prediction": measure_classification,
    "token-classification": measure_tagging,
    "question-answering": measure_answers,
    "multiple-choice": measure_choices,
    "fill-mask": measure_masked,
    "feature-extraction": measure_embedding,
}


@dataclass(frozen=True)
class Scores:
    """One model's: by metric, its value, and the difference to the first model's, paired by example."""

    quality: dict[str, Interval] = field(default_factory=dict)
    against: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Quality:
    """metrics: those that any model has, in order. scores: one a model, in order.

    examples: how many were scored: texts, or windows of a language model. notes: what was cut, left out or too
    little, a sentence each.
    """

    metrics: tuple[Metric, ...]
    scores: tuple[Scores, ...]
    examples: int
    notes: tuple[str, ...] = ()


def measure_quality(
    models: Sequence[tuple[str, Model]],
    examples: Sequence[Example],
    *,
    limit: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Quality:
    """Measure all models, each with its name, on the same examples; the first is the reference.

    limit: texts, or windows of a language model, at most: a sample that is always the same. progress: called with
    how many texts were read, by all models together, and how many there are.

    Models that read the same data one after the other need memory for one window's logits, not for all.

    Raises InputError for models of different tasks, labels or tokens, for labels that they lack, and for a task
    that cannot be measured; QuantizationError where scikit-learn or seqeval is missing.
    """
    opened = [model for _, model in models]
    task = _common_task(models)
    watch = Watch(progress)
    if task == "text-generation":
        measured = measure_language(opened, examples, watch, limit)  # type: ignore[arg-type]
    else:
        measured = MEASURED[task](opened, sample(examples, limit), watch)
    metrics = dict.fromkeys(measure.metric for measures in measured for measure in measures)
    number = max((measure.examples for measures in measured for measure in measures), default=0)
    if not metrics:
        watch.notes.append(
            "The data has no labels, and there is no second bundle to compare with: nothing is measured."
        )
    elif number < FEW:
        few = "One example is" if number == 1 else f"{number} examples are"
        watch.notes.append(f"{few} too few for intervals to rely on: give {FEW} or more.")
    scores = tuple(Scores(quality, against) for quality, against in estimate(measured))
    return Quality(tuple(metrics), scores, number, tuple(watch.notes))


def _common_task(models: Sequence[tuple[str, Model]]) -> str:
    """The task of all, by their class: a bundle can be opened for another one than its own."""
    classes = {task.cls: name for name, task in TASKS.items()}
    tasks = [(name, classes[type(model).__name__]) for name, model in models]
    if not tasks:
        raise InputError("there is no bundle to measure: give at least one")
    first, task = tasks[0]
    for name, other in tasks[1:]:
        if other != task:
            raise InputError(f"{name} is for {other}, {first} for {task}: give bundles of one task")
    if task != "text-generation" and task not in MEASURED:
        raise InputError(f"bench cannot measure the quality of {task}: leave the data out to measure speed")
    return task
