"""text-classification and next-sentence-prediction: one label of many, several at once, or a number.

N examples, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.batching import Batching
from torchless.classifier import Classifier
from torchless.errors import InputError
from torchless.quantize.data import Example
from torchless.quantize.extra import import_extra
from torchless.quantize.intervals import Measure, linear, mean, ratio
from torchless.quantize.quality.alike import same_labels
from torchless.quantize.quality.correlation import pearson, spearman
from torchless.quantize.quality.labels import class_ids, label_sets, numbers
from torchless.quantize.quality.watch import Watch, labelled
from torchless.quantize.results import Metric
from torchless.sampling import log_softmax
from torchless.tasks.text_classification import identity, sigmoid

Logits = npt.NDArray[np.float32]
Float = npt.NDArray[np.float64]

BINS = 15

ACCURACY = Metric("accuracy", "accuracy", "higher", percent=True)
MACRO_F1 = Metric("macro_f1", "F1, mean of the labels", "higher", percent=True)
MICRO_F1 = Metric("micro_f1", "F1 over all labels", "higher", percent=True)
CALIBRATION = Metric("calibration_error", "expected calibration error", "lower", percent=True)
AGREEMENT = Metric("agreement", "same label as the first", "higher", percent=True)
KL = Metric("kl", "KL divergence from the first, nats", "lower")
PEARSON = Metric("pearson", "Pearson correlation", "higher")
SPEARMAN = Metric("spearman", "Spearman correlation", "higher")
DISTANCE = Metric("distance", "mean absolute difference from the first", "lower")


def measure_classification(
    models: Sequence[Classifier], examples: Sequence[Example], watch: Watch
) -> list[list[Measure]]:
    """Each model's measures. Raises InputError for models whose labels differ, and labels that they lack."""
    labels = same_labels(models)
    problem = models[0].bundle.manifest.problem_type
    watch.begin(len(models) * len(examples))
    if problem == "regression" or len(labels) == 1:
        return _regression(models, examples, watch)
    if problem == "multi_label_classification":
        return _several(models, examples, watch)
    truth = class_ids([(e.place, e.label) for e in examples], labels) if labelled(examples) else None
    found = [log_softmax(one) for one in _logits(models, examples, watch)]
    measured = []
    for number, log_probs in enumerate(found):
        measures = [] if truth is None else right(log_probs, truth)
        if number:
            measures += [
                mean(AGREEMENT, log_probs.argmax(axis=1) == found[0].argmax(axis=1)),
                mean(KL, divergence(found[0], log_probs)),
            ]
        measured.append(measures)
    return measured


def right(log_probs: Logits, truth: npt.NDArray[np.int64]) -> list[Measure]:
    """Accuracy, macro F1 and calibration error of log-probabilities [N,L], where truth [N] is right."""
    guess = log_probs.argmax(axis=1)
    metrics, width = import_extra("sklearn.metrics"), log_probs.shape[1]
    hits, f1 = guess == truth, metrics.f1_score(truth, guess, average="macro", zero_division=0)
    classes = np.eye(width, dtype=bool)
    return [
        mean(ACCURACY, hits, value=metrics.accuracy_score(truth, guess)),
        linear(MACRO_F1, confusion(classes[guess], classes[truth]), lambda sums: macro_f1(sums, absent=False), f1),
        calibration(np.exp(log_probs.max(axis=1)), hits),
    ]


def calibration(confidence: Any, hits: npt.NDArray[np.bool_]) -> Measure:
    """How far confidence [N] is from being right, [N]: the mean over 15 bins of equal width (Guo et al., 2017)."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.zeros((len(bins), BINS + 1))
    gaps[np.arange(len(bins)), bins] = hits - confidence
    gaps[:, BINS] = 1
    return linear(CALIBRATION, gaps, lambda sums: np.abs(sums[:, :BINS]).sum(axis=1) / sums[:, BINS])


def confusion(guess: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Two of [N,L] -> [N,3L]: guessed and true, guessed, true."""
    return np.concatenate([guess & truth, guess, truth], axis=1)


def macro_f1(sums: Float, *, absent: bool) -> Float:
    """[R,3L] -> [R]. absent: whether a label that is neither guessed nor true counts (as 0), or is left out."""
    hits, guessed, true = np.split(sums, 3, axis=1)
    counted = np.ones_like(hits) if absent else guessed + true > 0
    result: Float = ratio(2 * hits, guessed + true).sum(axis=1) / counted.sum(axis=1)
    return result


def micro_f1(sums: Float) -> Float:
    """[R,3L] -> [R]."""
    hits, guessed, true = (part.sum(axis=1) for part in np.split(sums, 3, axis=1))
    return ratio(2 * hits, guessed + true)


def divergence(first: Any, other: Any) -> Float:
    """KL(first || other) in nats, of log-probabilities [..,V] -> [..]; rounding never makes it negative."""
    result: Float = np.maximum((np.exp(first) * (first - other)).sum(axis=-1, dtype=np.float64), 0)
    return result


def _logits(models: Sequence[Classifier], examples: Sequence[Example], watch: Watch) -> list[Logits]:
    """float32 [N,L] of each model."""
    found = []
    for number, model in enumerate(models):
        rows = []
        for block in watch.blocks(examples):
            encodings = [watch.encode(model, example.given, count=not number) for example in block]
            rows.append(model.rows(encodings, len(model.labels), Batching()))
        found.append(np.concatenate(rows))
    watch.tell_cut(models[0], examples)
    return found


def _several(models: Sequence[Classifier], examples: Sequence[Example], watch: Watch) -> list[list[Measure]]:
    truth = label_sets(examples, models[0].labels) if labelled(examples) else None
    found = _logits(models, examples, watch)
    measured = []
    for number, logits in enumerate(found):
        measures = []
        if truth is not None:
            guess, f1 = logits >= 0, import_extra("sklearn.metrics").f1_score  # a probability of 0.5
            sums = confusion(guess, truth)
            micro = f1(truth, guess, average="micro", zero_division=0)
            macro = f1(truth, guess, average="macro", zero_division=0)
            measures += [
                linear(MICRO_F1, sums, micro_f1, micro),
                linear(MACRO_F1, sums, lambda sums: macro_f1(sums, absent=True), macro),
            ]
        if number:
            same = (logits >= 0) == (found[0] >= 0)
            measures += [
                mean(AGREEMENT, same.mean(axis=1)),
                mean(KL, divergence(_both(found[0]), _both(logits)).sum(axis=1)),
            ]
        measured.append(measures)
    return measured


def _both(logits: Any) -> Float:
    """[N,L] -> [N,L,2]: the log-probabilities of each label and of its absence."""
    return np.stack([-np.logaddexp(0, -logits), -np.logaddexp(0, logits)], axis=-1)


def _regression(models: Sequence[Classifier], examples: Sequence[Example], watch: Watch) -> list[list[Measure]]:
    """One number a text; a single label that is not a regression's is judged by its probability."""
    if len(models[0].labels) != 1:
        raise InputError(f"{models[0].bundle.path}: bench measures a regression of one number, not of several")
    truth = numbers(examples) if labelled(examples) else None
    squash = identity if models[0].bundle.manifest.problem_type == "regression" else sigmoid
    found = [squash(one[:, 0]).astype(np.float64) for one in _logits(models, examples, watch)]
    measured = []
    for number, values in enumerate(found):
        measures = [] if truth is None else [pearson(PEARSON, values, truth), spearman(SPEARMAN, values, truth)]
        if number:
            measures.append(mean(DISTANCE, np.abs(values - found[0])))
        measured.append(measures)
    return measured
