"""question-answering and multiple-choice: answers that are right, and answers that are the first model's."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torchless.errors import InputError
from torchless.quantize.data import Example
from torchless.quantize.intervals import Measure, mean
from torchless.quantize.quality.classification import ACCURACY, DISTANCE
from torchless.quantize.quality.watch import Watch, labelled
from torchless.quantize.results import Metric
from torchless.tasks.multiple_choice import Choice, MultipleChoice
from torchless.tasks.question_answering import Answer, QuestionAnswering

TOGETHER = 32  # questions between two reports

EXACT = Metric("exact_match", "answers exactly right (SQuAD)", "higher", percent=True)
F1 = Metric("answer_f1", "F1 of the answers' words (SQuAD)", "higher", percent=True)
AGREEMENT = Metric("agreement", "same answer as the first", "higher", percent=True)
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def measure_answers(
    models: Sequence[QuestionAnswering], examples: Sequence[Example], watch: Watch
) -> list[list[Measure]]:
    """Each model's measures. Where a question has no answers in the data, a model may give none, too (SQuAD 2)."""
    known = examples[0].answers is not None
    impossible = known and any(not example.answers for example in examples)
    watch.begin(len(models) * len(examples))
    first: list[Answer] = []
    measured = []
    for number, model in enumerate(models):
        found: list[Answer] = []
        for block in watch.blocks(examples, TOGETHER):
            questions, contexts = [one.text for one in block], [one.text_pair for one in block]
            found += model(questions, contexts, handle_impossible_answer=impossible)
        measures = right([one.answer for one in found], examples) if known else []
        if number:
            measures += [
                mean(AGREEMENT, [one.answer == other.answer for one, other in zip(found, first, strict=True)]),
                mean(DISTANCE, [abs(one.score - other.score) for one, other in zip(found, first, strict=True)]),
            ]
        else:
            first = found
        measured.append(measures)
    return measured


def right(found: Sequence[str], examples: Sequence[Example]) -> list[Measure]:
    """Exact match and F1 of words with the nearest of the right answers (Rajpurkar et al., 2016)."""
    pairs = [(answer, example.answers or ("",)) for answer, example in zip(found, examples, strict=True)]
    return [
        mean(EXACT, [max(normal(one) == normal(answer) for one in several) for answer, several in pairs]),
        mean(F1, [max(overlap(answer, one) for one in several) for answer, several in pairs]),
    ]


def normal(answer: str) -> list[str]:
    """Its words, as SQuAD compares them: in lower case, without punctuation and articles."""
    return ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split()


def overlap(answer: str, other: str) -> float:
    """F1 of the words; of an answer without words, whether the other has none either."""
    one, two = normal(answer), normal(other)
    if not one or not two:
        return float(one == two)
    shared = (Counter(one) & Counter(two)).total()
    return 2 * shared / (len(one) + len(two))


def measure_choices(
    models: Sequence[MultipleChoice], examples: Sequence[Example], watch: Watch
) -> list[list[Measure]]:
    """Each model's measures; a label is the index of the right choice."""
    truth = [_index(example) for example in examples] if labelled(examples) else None
    watch.begin(len(models) * len(examples))
    first: list[Choice] = []
    measured = []
    for number, model in enumerate(models):
        found: list[Choice] = []
        for block in watch.blocks(examples, TOGETHER):
            asked: dict[str, Any] = {"context": [one.text for one in block]}
            asked |= {"choices": [one.choices for one in block], "question": [one.question for one in block]}
            found += model(**asked, truncation=True)
        measures = []
        if truth is not None:
            measures.append(mean(ACCURACY, [one.index == right for one, right in zip(found, truth, strict=True)]))
        if number:
            pairs = list(zip(found, first, strict=True))
            measures += [
                mean(AGREEMENT, [one.index == other.index for one, other in pairs]),
                mean(DISTANCE, [abs(one.scores[other.index] - other.score) for one, other in pairs]),
            ]
        else:
            first = found
        measured.append(measures)
    return measured


def _index(example: Example) -> int:
    try:
        index = int(example.label)
    except (TypeError, ValueError):
        index = -1
    if not 0 <= index < len(example.choices):
        raise InputError(
            f"{example.place}: the label {example.label!r} is none of the "
            f"{len(example.choices)} choices, counted from 0"
        )
    return index
