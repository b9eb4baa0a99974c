"""One file a task, named as Hugging Face names its tasks. This table says which class answers which task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A task: the file and class that answer it, and the head and outputs that its graph has."""

    module: str
    cls: str
    head: str  # the task whose graph it runs: ranking is classification with another question
    outputs: tuple[str, ...] = ("logits",)


TASKS = {
    "text-generation": Task("text_generation", "TextGeneration", "text-generation"),
    "text-classification": Task("text_classification", "TextClassification", "text-classification"),
    "token-classification": Task("token_classification", "TokenClassification", "token-classification"),
    "question-answering": Task(
        "question_answering", "QuestionAnswering", "question-answering", ("start_logits", "end_logits")
    ),
    "fill-mask": Task("fill_mask", "FillMask", "fill-mask"),
    "feature-extraction": Task("embedding", "Embedding", "feature-extraction", ("sentence_embedding",)),
    "multiple-choice": Task("multiple_choice", "MultipleChoice", "multiple-choice"),
    "next-sentence-prediction": Task("next_sentence", "NextSentencePrediction", "next-sentence-prediction"),
    "text-ranking": Task("text_ranking", "TextRanking", "text-classification"),
    "zero-shot-classification": Task("zero_shot", "ZeroShotClassification", "text-classification"),
}


def unfit(task: str, labels: Sequence[str]) -> str:
    """What a classifier with these labels lacks for the task; "" for nothing."""
    if task == "text-ranking" and len(labels) != 1:
        return f"text-ranking needs a head with one label, this one has {', '.join(labels)}"
    if task == "zero-shot-classification" and (len(labels) < 2 or not any(map(entails, labels))):
        return (
            'zero-shot-classification needs a head for inference, with a label "entailment" and its opposite: this '
            f"one has {', '.join(labels)}"
        )
    return ""


def entails(label: str) -> bool:
    """Whether this is the label of entailment, by which transformers looks for it."""
    return label.lower().startswith("entail")
