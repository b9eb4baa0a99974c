"""zero-shot-classification: labels that a model has never seen, each put to it as a hypothesis about the text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from torchless.arguments import check_count, check_flag
from torchless.batching import BATCH_SIZE
from torchless.bundle import Bundle
from torchless.classifier import Classifier
from torchless.errors import InputError
from torchless.model import Fit, texts_of
from torchless.providers.first import Settings
from torchless.sampling import softmax
from torchless.tasks import entails, unfit
from torchless.tasks.text_classification import Classification, rank_labels
from torchless.text import Text, check_text

Float = npt.NDArray[np.float32]

TEMPLATE = "This example is {}."


class ZeroShotClassification(Classifier):
    """Call it with a text, or a list of texts, and candidate_labels=. The head is one for inference (NLI).

    Raises InputError when opened for a head without a label that begins with "entail".
    """

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(bundle, settings)
        if lack := unfit("zero-shot-classification", self.labels):
            raise InputError(f"{bundle.path}: {lack}")
        self.entailment_id = next(i for i, label in enumerate(self.labels) if entails(label))
        self.contradiction_id = -1 if self.entailment_id == 0 else 0  # where transformers looks for it

    @overload
    def __call__(
        self,
        texts: str,
        *,
        candidate_labels: str | Sequence[str],
        hypothesis_template: str = ...,
        multi_label: bool = ...,
        top_k: int | None = ...,
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
        texts: list[str],
        *,
        candidate_labels: str | Sequence[str],
        hypothesis_template: str = ...,
        multi_label: bool = ...,
        top_k: int | None = ...,
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
        candidate_labels: str | Sequence[str] | None = None,
        hypothesis_template: str = TEMPLATE,
        multi_label: bool = False,
        top_k: int | None = None,
        batch_size: int = BATCH_SIZE,
        cancel: threading.Event | None = None,
        progress: Callable[[int, int], object] | None = None,
        truncation: bool | str = "only_first",
        max_length: int | None = None,
        truncation_side: str = "right",
    ) -> Classification | list[Classification]:
        """One Classification over candidate_labels for a text, a list of them for a list, in order.

        candidate_labels: a list, or one text with commas between them. hypothesis_template: has {} where the
        label goes. multi_label: each label by itself, entailment against contradiction, instead of all labels
        against each other (a single label is always judged so). top_k: keep the k best, best first.
        truncation, max_length, truncation_side: as in torchless.model.Fit; as in transformers' pipeline a text
        that is too long is cut by default, and True cuts the text, never the hypothesis.
        """
        labels = labels_of(candidate_labels)
        check_flag("multi_label", multi_label)
        hypotheses = [hypothesis(hypothesis_template, label) for label in labels]
        if top_k is not None:
            top_k = check_count("top_k", top_k)
        fit = Fit("only_first" if truncation is True else truncation, max_length, truncation_side)
        given, single = texts_of(texts)
        batching = self.batching(batch_size, cancel, progress)

        def answer(part: Sequence[Text]) -> list[Classification]:
            pairs = [(check_text(text, "texts"), one) for text in part for one in hypotheses]
            logits = self.logits(pairs, fit, batching).reshape(len(part), len(labels), len(self.labels))
            if multi_label or len(labels) == 1:
                scores = softmax(logits[..., [self.contradiction_id, self.entailment_id]])[..., 1]  # [N,labels]
            else:
                scores = softmax(logits[..., self.entailment_id])
            return [rank_labels(labels, row, top_k) for row in scores]

        results = batching.answers(given, answer)
        return results[0] if single else results


def labels_of(given: Any) -> list[str]:
    """candidate_labels as a list, or InputError for none, for one given twice, and for what is no text."""
    labels = [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given
    if not isinstance(labels, list | tuple) or not labels:
        raise InputError(f"candidate_labels={given!r}: give a list of labels, at least one")
    for label in labels:
        if labels.count(check_text(label, "candidate_labels")) > 1:
            raise InputError(f"candidate_labels has {label!r} twice: give each label once")
    return list(labels)


def hypothesis(template: Any, label: str) -> str:
    """The label in its sentence."""
    sentence = check_text(template, "hypothesis_template")
    try:
        made, placeless = sentence.format(label), sentence.format("") == sentence
    except (IndexError, KeyError, ValueError, AttributeError, TypeError):
        placeless = True  # not a template that one label fills
    if placeless:
        raise InputError(f"hypothesis_template={template!r}: write {{}} once where the label goes")
    if made == sentence:
        raise InputError(f"candidate_labels: {label!r} leaves the template as it is: give a label of words")
    return made
