"""multiple-choice: a context, perhaps a question, and choices in; the choice that fits best out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from torchless.batching import BATCH_SIZE
from torchless.classifier import RowScorer
from torchless.errors import InputError
from torchless.model import Fit
from torchless.sampling import softmax
from torchless.text import check_length, check_text

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Choice:
    """The best choice: its index, its score, and the score of each; scores are probabilities over the choices.

    logprobs: of a choice by likelihood, the log-probability of each choice's tokens, added up.
    """

    index: int
    score: float
    scores: list[float] = field(repr=False)
    logprobs: list[float] | None = field(default=None, repr=False)


def choose_best(values: npt.NDArray[Any], logprobs: list[float] | None = None) -> Choice:
    """values [choices], on a scale of logarithms -> their softmax and the best of them, of equals the first."""
    scores = softmax(values)
    best = int(scores.argmax())
    return Choice(best, float(scores[best]), scores.tolist(), logprobs)


class MultipleChoice(RowScorer):
    """Call it with context= and choices=, and question= where there is one.

    The graph scores the pair (context and question, choice) for each choice, and a softmax runs over the choices:
    the form of the GPT paper, whose delimiters are the tokenizer's template for a pair, and of BERT. A model that
    was trained on (context, question and choice) gets the question at the head of each choice instead.
    """

    @overload
    def __call__(
        self,
        *,
        context: str,
        choices: Sequence[str],
        question: str | None = ...,
        batch_size: int = ...,
        cancel: threading.Event | None = ...,
        progress: Callable[[int, int], object] | None = ...,
        truncation: bool | str = ...,
        max_length: int | None = ...,
        truncation_side: str = ...,
    ) -> Choice: ...
    @overload
    def __call__(
        self,
        *,
        context: list[str],
        choices: Sequence[Sequence[str]],
        question: list[str] | None = ...,
        batch_size: int = ...,
        cancel: threading.Event | None = ...,
        progress: Callable[[int, int], object] | None = ...,
        truncation: bool | str = ...,
        max_length: int | None = ...,
        truncation_side: str = ...,
    ) -> list[Choice]: ...

    def __call__(
        self,
        *,
        context: Any = None,
        choices: Any = None,
        question: Any = None,
        batch_size: int = BATCH_SIZE,
        cancel: threading.Event | None = None,
        progress: Callable[[int, int], object] | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        truncation_side: str = "right",
    ) -> Choice | list[Choice]:
        """A Choice; for a list of contexts, with a list of choices (and a question) for each, a list of them.

        truncation: True and "only_first" cut the context, and leave question and choice whole. max_length,
        truncation_side: as in torchless.model.Fit.
        """
        fit = Fit("only_first" if truncation is True else truncation, max_length, truncation_side)
        single = not isinstance(context, list)
        contexts, lists, questions = ([context], [choices], [question]) if single else (context, choices, question)
        questions = [None] * len(contexts) if questions is None else questions
        if not all(isinstance(given, list) and len(given) == len(contexts) for given in (lists, questions)):
            raise InputError(f"{len(contexts)} contexts need a list of as many choices, and questions if any")
        batching = self.batching(batch_size, cancel, progress)

        def answer(part: Sequence[tuple[Any, Any, Any]]) -> list[Choice]:
            encodings: list[Encoding] = []
            counts = []
            for one, several, asked in batching.each(part):
                counts.append(len(check_choices(several)))
                encodings += [self._pair(check_text(one, "context"), asked, choice, fit) for choice in several]
            values = self.rows(encodings, 1, batching)[:, 0]
            return [choose_best(scores) for scores in np.split(values, np.cumsum(counts)[:-1])]

        results = batching.answers(list(zip(contexts, lists, questions, strict=True)), answer)
        return results[0] if single else results

    def _pair(self, context: str, question: str | None, choice: str, fit: Fit) -> Encoding:
        if question is None:
            return self.encode((context, choice), fit)
        check_text(question, "question")
        if fit.truncation == "only_first":
            context = self._shorten(context, question, choice, fit)
        return self.encode((_join(context, question), choice), fit)

    def _shorten(self, context: str, question: str, choice: str, fit: Fit) -> str:
        """As much of the context as fits: cutting the pair's first text would cut the question at its end."""
        limit = fit.limit(self.context_length)
        tokens = self.tokenizer.encode(context, special_tokens=False).offsets
        kept, rest = len(tokens), context
        while excess := max(len(self.tokenizer.encode((_join(rest, question), choice)).ids) - limit, 0):
            if not rest:
                check_length(limit + excess, limit, advice="question and choice do not fit, shorten them")
            kept = max(kept - excess, 0)
            if fit.truncation_side == "right":
                rest = context[: tokens[kept - 1][1]] if kept else ""
            else:
                rest = context[tokens[-kept][0] :] if kept else ""
        return rest


def _join(context: str, question: str) -> str:
    return f"{context} {question}" if context else question


def check_choices(choices: Any) -> list[str]:
    """The choices as a list, or InputError for none at all and for what is no text."""
    if not isinstance(choices, list | tuple) or not choices:
        raise InputError(f"choices={choices!r}: give a list of texts, at least one")
    return [check_text(choice, "choices") for choice in choices]
