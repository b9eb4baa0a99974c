"""next-sentence-prediction: does the second text of a pair follow the first?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, overload

from torchless.batching import BATCH_SIZE
from torchless.classifier import Classifier
from torchless.errors import InputError
from torchless.model import Fit, texts_of
from torchless.sampling import softmax
from torchless.tasks.text_classification import Classification, classify


class NextSentencePrediction(Classifier):
    """Call it with a pair of texts as a tuple, or a list of pairs: the label is "is_next" or "random"."""

    @overload
    def __call__(
        self,
        pairs: tuple[str, str],
        *,
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
        pairs: list[tuple[str, str]],
        *,
        batch_size: int = ...,
        cancel: threading.Event | None = ...,
        progress: Callable[[int, int], object] | None = ...,
        truncation: bool | str = ...,
        max_length: int | None = ...,
        truncation_side: str = ...,
    ) -> list[Classification]: ...

    def __call__(
        self,
        pairs: Any,
        *,
        batch_size: int = BATCH_SIZE,
        cancel: threading.Event | None = None,
        progress: Callable[[int, int], object] | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        truncation_side: str = "right",
    ) -> Classification | list[Classification]:
        """One Classification for a pair, a list of them for a list, in order.

        truncation, max_length, truncation_side: as in torchless.model.Fit.
        """
        fit = Fit(truncation, max_length, truncation_side)
        given, single = texts_of(pairs)
        if any(not isinstance(pair, tuple) for pair in given):
            raise InputError("next-sentence-prediction compares two texts: give each pair as a tuple")
        batching = self.batching(batch_size, cancel, progress)
        results = batching.answers(
            given, lambda part: classify(self.logits(part, fit, batching), self.labels, softmax)
        )
        return results[0] if single else results
