"""text-classification: a text, or a pair, in; a label with its score out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from torchless.arguments import check_count, check_flag, check_name
from torchless.batching import BATCH_SIZE
from torchless.bundle import Bundle
from torchless.classifier import Classifier
from torchless.errors import BundleError, InputError
from torchless.manifest import EXPORT_AGAIN
from torchless.model import Fit, texts_of
from torchless.providers.first import Settings
from torchless.sampling import softmax
from torchless.text import Text

Float = npt.NDArray[np.float32]
Squash = Callable[[Float], Float]


@dataclass(frozen=True)
class Classification:
    """The best label and its score, and the score of each label: in their order, or best first with top_k."""

    label: str
    score: float
    scores: dict[str, float] = field(repr=False)

    def above(self, threshold: float = 0.5) -> list[str]:
        """The labels that score at least `threshold`: what a head with several labels at once says."""
        return [label for label, score in self.scores.items() if score >= threshold]


def sigmoid(logits: Float) -> Float:
    """[N,L] -> [N,L], without overflow for large negative logits."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def identity(logits: Float) -> Float:
    return logits


# As in transformers: one label of many, several labels at once, or a plain number.
SQUASH: dict[str, Squash] = {
    "single_label_classification": softmax,
    "multi_label_classification": sigmoid,
    "regression": identity,
}
FUNCTIONS: dict[str, Squash] = {"softmax": softmax, "sigmoid": sigmoid, "none": identity}


def function_of(name: str) -> Squash:
    """The function that transformers knows by this name, or an InputError that says which there are."""
    return FUNCTIONS[check_name("function_to_apply", name, FUNCTIONS)]


def rank_labels(labels: Sequence[str], scores: Float, top_k: int | None = None) -> Classification:
    """scores [L] -> the best label and all scores, or the top_k best, best first; of equals the first."""
    order = np.argsort(-scores, kind="stable")
    listed = range(len(labels)) if top_k is None else order[:top_k]
    best = int(order[0])
    return Classification(labels[best], float(scores[best]), {labels[i]: float(scores[i]) for i in listed})


def classify(
    logits: Float, labels: Sequence[str], squash: Squash, top_k: int | None = None
) -> list[Classification]:
    """float32 [N,L] -> one result a row, in order."""
    return [rank_labels(labels, row, top_k) for row in squash(logits)]


class TextClassification(Classifier):
    """Call it with a text, a pair of texts as a tuple, or a list of either."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.problem_type = bundle.manifest.problem_type or "single_label_classification"
        if self.problem_type not in SQUASH:
            raise BundleError(f"{bundle.path}: problem_type={self.problem_type!r} is unknown: {EXPORT_AGAIN}")
        super().__init__(bundle, settings)
        # One label leaves nothing to choose: transformers takes its sigmoid, and so do we.
        single = len(self.labels) == 1 and self.problem_type == "single_label_classification"
        self._squash = sigmoid if single else SQUASH[self.problem_type]

    @overload
    def __call__(
        self,
        texts: Text,
        *,
        top_k: int | None = ...,
        function_to_apply: str | None = ...,
        both_orders: bool = ...,
        batch_size: int = ...,
        cancel: threading.Event | None = ...,
        progress: Callable[[int, int], object] | None = ...,
        truncation: bool | str = ...,
        max_length: int | None = ...,
        truncation_side: str = ...,
    ) -> Classification: ...
    @overload
    def __call__(
        self,
        texts: list[Any],
        *,
        top_k: int | None = ...,
        function_to_apply: str | None = ...,
        both_orders: bool = ...,
        batch_size: int = ...,
        cancel: threading.Event | None = ...,
        progress: Callable[[int, int], object] | None = ...,
        truncation: bool | str = ...,
        max_length: int | None = ...,
        truncation_side: str = ...,
    ) -> list[Classification]: ...

    def __call__(
        self,
        texts: Any,
        *,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        both_orders: bool = False,
        batch_size: int = BATCH_SIZE,
        cancel: threading.Event | None = None,
        progress: Callable[[int, int], object] | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        truncation_side: str = "right",
    ) -> Classification | list[Classification]:
        """Classify: one result for a text, a list of them for a list, in order.

        top_k: keep the scores of the k best labels, best first. function_to_apply: softmax, sigmoid or none,
        instead of the one that the model was trained with. both_orders: read each pair both ways and add the
        logits, as the GPT paper does for similarity, where neither text is the first. truncation, max_length,
        truncation_side: as in torchless.model.Fit.
        """
        if top_k is not None:
            top_k = check_count("top_k", top_k)
        squash = self._squash if function_to_apply is None else function_of(function_to_apply)
        fit = Fit(truncation, max_length, truncation_side)
        check_flag("both_orders", both_orders)
        given, single = texts_of(texts)
        batching = self.batching(batch_size, cancel, progress)

        def answer(part: Sequence[Text]) -> list[Classification]:
            logits = self.logits([*part, *map(turn, part)] if both_orders else part, fit, batching)
            if both_orders:
                logits = logits[: len(part)] + logits[len(part) :]
            return classify(logits, self.labels, squash, top_k)

        results = batching.answers(given, answer)
        return results[0] if single else results


def turn(pair: Text) -> Text:
    """The second text first."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise InputError("both_orders=True is for pairs: give each as a tuple of two texts")
    return pair[1], pair[0]
