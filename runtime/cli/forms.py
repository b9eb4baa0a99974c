"""What each task asks for on the command line: its fields, its options, and how the model is called with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torchless.errors import TorchlessError

Item = dict[str, Any]  # the fields of one question to the model, as a line of JSON has them


@dataclass(frozen=True)
class Asked:
    """A question and where it was read; `error` says why it cannot be asked."""

    item: Item
    place: str = ""
    error: TorchlessError | None = None


Ask = Callable[[Any, Sequence[Item], dict[str, Any]], list[Any]]

LISTS = ("passages", "choices")  # fields that several texts fill together
CHOOSE, SCORE = "choose", "score"  # what else a GPT does with a text
FIT = ("batch_size", "truncation", "max_length", "truncation_side")


@dataclass(frozen=True)
class Form:
    """A task's fields and options; `answers` names its answer in JSON where that is a list.

    whole: a file is one text, where it is not read by --lines.
    """

    fields: tuple[str, ...]
    options: tuple[str, ...]
    ask: Ask
    optional: tuple[str, ...] = ()
    answers: str = ""
    whole: bool = False


def ask_prompts(model: Any, items: Sequence[Item], settings: dict[str, Any]) -> list[Any]:
    """All prompts together."""
    answers: list[Any] = model([item["prompt"] for item in items], **settings)
    return answers


def ask_texts(model: Any, items: Sequence[Item], settings: dict[str, Any]) -> list[Any]:
    """Texts and pairs; those that share their other fields (labels, targets) go together."""

    def others(item: Item) -> Item:
        return {name: value for name, value in item.items() if name not in ("id", "text", "text_pair")}

    answers: list[Any] = []
    for shared, group in groupby(items, key=others):
        texts = [(item["text"], item["text_pair"]) if "text_pair" in item else item["text"] for item in group]
        answers.extend(model(texts, **shared, **settings))
    return answers


def ask_fields(*names: str) -> Ask:
    """Fields that are given as lists side by side; items that leave one out are asked apart."""

    def ask(model: Any, items: Sequence[Item], settings: dict[str, Any]) -> list[Any]:
        answers: list[Any] = []
        for present, group in groupby(items, key=lambda item: [name for name in names if name in item]):
            together = list(group)
            columns = {name: [item[name] for item in together] for name in present}
            answers.extend(model(**columns, **settings))
        return answers

    return ask


def ask_each(model: Any, items: Sequence[Item], settings: dict[str, Any]) -> list[Any]:
    """One call an item."""
    return [model(**{n: v for n, v in item.items() if n != "id"}, **settings) for item in items]


def ask_choose(model: Any, items: Sequence[Item], settings: dict[str, Any]) -> list[Any]:
    """A choice by likelihood for each item."""
    return [model.choose(item["context"], item["choices"], **settings) for item in items]


def ask_score(model: Any, items: Sequence[Item], settings: dict[str, Any]) -> list[Any]:
    """The log-probabilities of each text."""
    return [model.score(item["text"], **settings) for item in items]


FORMS = {
    "text-generation": Form(
        ("prompt",),
        (
            "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p",
            "seed", "num_beams", "length_penalty", "num_return_sequences", "repetition_penalty",
            "no_repeat_ngram_size", "overflow", "keep", "stop_strings", "max_time", "logprobs", "batch_size",
            "regex", "json_schema",
            "return_full_text", "prompt_lookup_num_tokens", "assistant_model",
        ),
        ask_prompts,
        answers="generations",
        whole=True,
    ),
    CHOOSE: Form(("context", "choices"), (), ask_choose),
    SCORE: Form(("text",), ("stride",), ask_score, whole=True),
    "text-classification": Form(
        ("text",), (*FIT, "top_k", "function_to_apply", "both_orders"), ask_texts, optional=("text_pair",)
    ),
    "token-classification": Form(
        ("text",), (*FIT, "aggregation_strategy", "ignore_labels", "stride"), ask_texts, answers="entities"
    ),
    "question-answering": Form(
        ("context", "question"),
        (
            "batch_size", "top_k", "doc_stride", "max_answer_len", "max_seq_len", "max_question_len",
            "handle_impossible_answer", "align_to_words",
        ),
        ask_fields("question", "context"),
        answers="answers",
    ),
    "fill-mask": Form(
        ("text",), (*FIT, "top_k", "multi_token"), ask_texts, ("text_pair", "targets"), "candidates"
    ),
    "feature-extraction": Form(
        ("text",), (*FIT, "normalize", "truncate_dim"), ask_texts, optional=("text_pair",), answers="embedding"
    ),
    "multiple-choice": Form(
        ("context", "choices"), FIT, ask_fields("context", "choices", "question"), optional=("question",)
    ),
    "next-sentence-prediction": Form(("text", "text_pair"), FIT, ask_texts),
    "text-ranking": Form(
        ("query", "passages"), (*FIT, "top_k", "function_to_apply"), ask_each, answers="ranking"
    ),
    "zero-shot-classification": Form(
        ("text", "candidate_labels"), (*FIT, "top_k", "hypothesis_template", "multi_label"), ask_texts
    ),
}  # fmt: skip
