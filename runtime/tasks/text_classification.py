"""text-classification: a text, or a pair, in; a label with its score out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from torchless.bundle import EXPORT_AGAIN, Bundle
from torchless.encoder import Encoder
from torchless.errors import BundleError, InputError
from torchless.model import BATCH_SIZE, Fit, Model, Settings, texts_of
from torchless.sampling import check_numbers, softmax
from torchless.text import Text

Float = npt.NDArray[np.float32]
Squash = Callable[[Float], Float]


@dataclass(frozen=True)
class Classification:
    """The best label and its score, and the score of each label."""

    label: str
    score: float
    scores: dict[str, float] = field(repr=False)


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


def classify(logits: Float, labels: Sequence[str], squash: Squash) -> list[Classification]:
    """float32 [N,L] -> one result a row, in order."""
    if logits.ndim != 2 or logits.shape[1] != len(labels):
        raise BundleError(
            f"the graph scores {logits.shape[-1]} labels, torchless.json names {len(labels)}: {EXPORT_AGAIN}"
        )
    check_numbers(logits)
    return [
        Classification(labels[int(row.argmax())], float(row.max()), dict(zip(labels, row.tolist(), strict=True)))
        for row in squash(logits)
    ]


class TextClassification(Model):
    """Call it with a text, a pair of texts as a tuple, or a list of either."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(bundle, settings)
        manifest = bundle.manifest
        if not manifest.labels:
            raise BundleError(f"{bundle.path}: the manifest names no labels: {EXPORT_AGAIN}")
        self.labels = manifest.labels
        problem = manifest.problem_type or "single_label_classification"
        if problem not in SQUASH:
            raise BundleError(f"{bundle.path}: problem_type={problem!r} is unknown: {EXPORT_AGAIN}")
        # One label leaves nothing to choose: transformers takes its sigmoid, and so do we.
        single = len(self.labels) == 1 and problem == "single_label_classification"
        self._squash = sigmoid if single else SQUASH[problem]
        self._runner = Encoder(self.session, bundle, "logits")

    @overload
    def __call__(
        self,
        texts: Text,
        *,
        batch_size: int = ...,
        truncation: bool | str = ...,
        max_length: int | None = ...,
        truncation_side: str = ...,
        function_to_apply: str | None = ...,
    ) -> Classification: ...
    @overload
    def __call__(
        self,
        texts: list[Any],
        *,
        batch_size: int = ...,
        truncation: bool | str = ...,
        max_length: int | None = ...,
        truncation_side: str = ...,
        function_to_apply: str | None = ...,
    ) -> list[Classification]: ...

    def __call__(
        self,
        texts: Any,
        *,
        batch_size: int = BATCH_SIZE,
        truncation: bool | str = False,
        max_length: int | None = None,
        truncation_side: str = "right",
        function_to_apply: str | None = None,
    ) -> Classification | list[Classification]:
        """Classify: one result for a text, a list of them for a list, in order.

        truncation, max_length, truncation_side: as in torchless.model.Fit. function_to_apply: softmax, sigmoid or
        none, instead of the one that the model was trained with.
        """
        if function_to_apply is not None and function_to_apply not in FUNCTIONS:
            raise InputError(f"function_to_apply={function_to_apply!r}: give softmax, sigmoid or none")
        fit = Fit(truncation, max_length, truncation_side)
        squash = FUNCTIONS[function_to_apply] if function_to_apply else self._squash
        given, single = texts_of(texts)
        encoder: Encoder = self.runner
        encodings = [self.encode(text, fit) for text in given]
        results: list[Classification | None] = [None] * len(given)
        for index, logits in encoder(encodings, batch_size):
            results[index] = classify(logits[None], self.labels, squash)[0]
        done = [result for result in results if result is not None]
        return done[0] if single else done
