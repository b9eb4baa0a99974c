"""The tasks of heads.py: what each learns from, its loss, and the question that a bundle is asked.

The registries ship no labels for most of them, so the questions are made of the texts themselves: names are what an
address writes with a capital letter inside a sentence (the model reads lower case), an answer is the name that was
blanked out of a sentence of the context, the passage that ranks first is the one that goes on with the query.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batches import pad
from bert import mask_words
from choose import Question, make_questions, sentences
from tokenizers import Encoding, Tokenizer
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

LIMIT = 128  # tokens of a sample
NAME = re.compile(r"(?<=[a-z,;] )[A-Z][\w'.-]*\w(?: (?:of |the )?[A-Z][\w'.-]*\w)*")  # inside a sentence

Batch = list[int]
Asked = Callable[[Any], float]  # a loaded bundle -> a figure between 0 and 1


@dataclass(frozen=True)
class Task:
    """Samples to learn from, their loss, and the question that a bundle is asked."""

    cls: str  # the Hugging Face class
    lengths: Sequence[Sequence[int]]  # a row of ids for each sample
    loss: Callable[[Any, Batch], Tensor]
    ask: Asked
    figure: str  # what ask measures
    config: dict[str, Any]
    task: str | None = None  # where it is not the class's own


@dataclass(frozen=True)
class Texts:
    """What the tasks are made of; `held` is never learned from."""

    tokenizer: Tokenizer
    speeches: list[str]
    held: list[str]
    mails: list[dict[str, Any]]
    held_mails: list[dict[str, Any]]
    novel: list[str]

    def encode(self, texts: Sequence[Any]) -> list[Encoding]:
        return self.tokenizer.encode_batch(list(texts))


def inputs(rows: Sequence[Encoding]) -> dict[str, Tensor]:
    """Padded input_ids, attention_mask and token_type_ids, each [B,S]."""
    ids, mask = pad([row.ids for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": pad([row.type_ids for row in rows])[0]}


def labelled(rows: list[Encoding], labels: Sequence[int]) -> Callable[[Any, Batch], Tensor]:
    """Cross-entropy over the labels of a text."""
    targets = torch.tensor(labels)
    return lambda model, batch: cross_entropy(
        model(**inputs([rows[i] for i in batch])).logits.float(), targets[batch]
    )


def spam(t: Texts) -> Task:
    """text-classification: spam or ham."""
    rows = t.encode([mail["text"] for mail in t.mails])

    def ask(model: Any) -> float:
        found = model([mail["text"] for mail in t.held_mails], truncation=True, max_length=LIMIT)
        return share(one.label == ("ham", "spam")[m["label"]] for one, m in zip(found, t.held_mails, strict=True))

    labels = [mail["label"] for mail in t.mails]
    config = {"id2label": {0: "ham", 1: "spam"}}
    return Task("BertForSequenceClassification", ids(rows), labelled(rows, labels), ask, "accuracy", config)


def names(t: Texts) -> Task:
    """token-classification: names in lower-cased text, B- and I-."""
    runs = [run for speech in t.speeches for run in runs_of(speech, 3)]
    rows = t.encode(runs)
    targets = [[name_label(run, row, i) for i in range(len(row.ids))] for run, row in zip(runs, rows, strict=True)]

    def loss(model: Any, batch: Batch) -> Tensor:
        logits = model(**inputs([rows[i] for i in batch])).logits.float()  # [B,S,3]
        wanted = pad([targets[i] for i in batch], -100)[0]
        return cross_entropy(logits.flatten(0, 1), wanted.flatten())

    def ask(model: Any) -> float:
        hit = wrong = 0
        for run in [run for speech in t.held for run in runs_of(speech, 3)][:300]:
            true = {match.span() for match in NAME.finditer(run)}
            found = {(e.start, e.end) for e in model(run.lower(), aggregation_strategy="simple")}
            hit, wrong = hit + len(true & found), wrong + len(true ^ found)
        return 2 * hit / max(1, 2 * hit + wrong)

    config = {"id2label": {0: "O", 1: "B-NAME", 2: "I-NAME"}}
    return Task("BertForTokenClassification", ids(rows), loss, ask, "F1 of whole names", config)


def name_label(text: str, row: Encoding, token: int) -> int:
    """0 outside, 1 at a name's beginning, 2 within; -100 where nothing is asked."""
    start, end = row.offsets[token]
    if row.special_tokens_mask[token]:
        return -100
    for match in NAME.finditer(text):
        if match.start() <= start and end <= match.end():
            return 1 if start == match.start() else 2
    return 0


def blanks(t: Texts) -> Task:
    """question-answering: the name that a sentence of the context has been robbed of."""
    made = [one for speech in t.speeches for one in blanked(speech)]
    rows = t.encode([(question, context) for question, context, _ in made])
    spans = []
    for row, (_, _, (start, end)) in zip(rows, made, strict=True):
        inside = [
            i for i, (a, b) in enumerate(row.offsets) if row.type_ids[i] == 1 and b > a and start <= a and b <= end
        ]
        spans.append((inside[0], inside[-1]) if inside else (0, 0))  # cut off: nothing to be found
    targets = torch.tensor(spans)

    def loss(model: Any, batch: Batch) -> Tensor:
        answer = model(**inputs([rows[i] for i in batch]))
        logits = torch.stack([answer.start_logits, answer.end_logits]).float()  # [2,B,S]
        return cross_entropy(logits[0], targets[batch, 0]) + cross_entropy(logits[1], targets[batch, 1])

    def ask(model: Any) -> float:
        asked = [one for speech in t.held for one in blanked(speech)][:200]
        found = [model(question=question, context=context) for question, context, _ in asked]
        return share((a.start, a.end) == span for a, (_, _, span) in zip(found, asked, strict=True))

    return Task("BertForQuestionAnswering", ids(rows), loss, ask, "exact matches", {})


def blanked(speech: str) -> list[tuple[str, str, tuple[int, int]]]:
    """(question, context, span of the answer in the context)."""
    made = []
    for context in runs_of(speech, 3):
        matches = list(NAME.finditer(context))
        if matches:
            match = matches[len(context) % len(matches)]
            start = max(context.rfind(".", 0, match.start()), context.rfind("?", 0, match.start())) + 1
            end = context.find(".", match.end())
            question = f"{context[start : match.start()]}what{context[match.end() : end]}?".strip()
            made.append((question, context, match.span()))
    return made


def words(t: Texts) -> Task:
    """fill-mask: one hidden word of a sentence."""
    rows = t.encode([run for speech in t.speeches for run in runs_of(speech, 3)])
    steps = iter(range(10**9))

    def loss(model: Any, batch: Batch) -> Tensor:
        given = inputs([rows[i] for i in batch])
        generator = torch.Generator().manual_seed(next(steps))
        given["input_ids"], asked = mask_words(
            given["input_ids"], given["attention_mask"], generator,
            first=1000, vocab=model.config.vocab_size, hidden=t.tokenizer.token_to_id("[MASK]"),
        )  # fmt: skip
        hidden = model.bert(**given).last_hidden_state[asked]
        return cross_entropy(model.cls(hidden).float(), pad([rows[i].ids for i in batch])[0][asked])

    def ask(model: Any) -> float:
        right = []
        for run in [run for speech in t.held for run in runs_of(speech, 3)][:300]:
            parts = run.split()
            at = len(run) % len(parts)
            hidden, parts[at] = parts[at], model.mask_token
            wanted = hidden.lower().strip(".,;:?!\"'")
            right.append(wanted in [one.token for one in model(" ".join(parts), truncation=True, top_k=5)])
        return share(right)

    return Task("BertForMaskedLM", ids(rows), loss, ask, "word among the first five", {})


def order(t: Texts) -> Task:
    """next-sentence-prediction: does the second sentence follow the first?"""
    rng = np.random.default_rng(0)

    def pairs(speeches: Sequence[str]) -> tuple[list[tuple[str, str]], list[int]]:
        questions = make_questions(speeches, 0)
        made = [(q.context, q.choices[q.answer if label == 0 else (q.answer + 1) % 4], label)
                for q in questions for label in [int(rng.integers(2))]]  # fmt: skip
        return [(a, b) for a, b, _ in made], [label for _, _, label in made]

    given, labels = pairs(t.speeches)
    rows = t.encode(given)
    asked, wanted = pairs(t.held)

    def ask(model: Any) -> float:
        found = model(asked, truncation=True)
        return share(model.labels.index(one.label) == label for one, label in zip(found, wanted, strict=True))

    return Task("BertForNextSentencePrediction", ids(rows), labelled(rows, labels), ask, "accuracy", {})


def choices(t: Texts) -> Task:
    """multiple-choice: which of four sentences goes on?"""
    made = make_questions(t.speeches, 0)
    rows = [t.encode([(q.context, choice) for choice in q.choices]) for q in made]
    targets = torch.tensor([q.answer for q in made])

    def loss(model: Any, batch: Batch) -> Tensor:
        flat = inputs([row for i in batch for row in rows[i]])
        logits = model(**{name: value.view(len(batch), 4, -1) for name, value in flat.items()}).logits
        return cross_entropy(logits.float(), targets[batch])

    def ask(model: Any) -> float:
        asked = make_questions(t.held, 0)
        found = [model(context=q.context, choices=q.choices, truncation=True) for q in asked]
        return share(one.index == q.answer for one, q in zip(found, asked, strict=True))

    lengths = [[0] * sum(len(choice.ids) for choice in row) for row in rows]
    return Task("BertForMultipleChoice", lengths, loss, ask, "accuracy", {})


def ranking(t: Texts) -> Task:
    """text-ranking: among eight passages the one that goes on with the query."""
    made = make_questions(t.speeches, 0)
    pairs = [(q, i) for q in made for i in (q.answer, (q.answer + 1) % 4)]
    rows = t.encode([(query_of(q), q.choices[i]) for q, i in pairs])
    targets = torch.tensor([float(i == q.answer) for q, i in pairs])

    def loss(model: Any, batch: Batch) -> Tensor:
        logits = model(**inputs([rows[i] for i in batch])).logits[:, 0]
        return binary_cross_entropy_with_logits(logits.float(), targets[batch])

    def ask(model: Any) -> float:
        asked, ranks = make_questions(t.held, 0), []
        for q, other in zip(asked, asked[1:] + asked[:1], strict=True):
            found = model(query=query_of(q), passages=q.choices + other.choices, truncation=True)
            ranks.append(1 + [one.index for one in found].index(q.answer))
        return float(np.mean(1 / np.array(ranks)))

    config = {"num_labels": 1}
    return Task(
        "BertForSequenceClassification", ids(rows), loss, ask, "mean reciprocal rank of 8", config, "text-ranking"
    )


def query_of(question: Question) -> str:
    return question.context.rsplit(". ", 1)[-1]


KINDS = {"spam": "spam", "ham": "a conversation", "speech": "a political speech", "novel": "a novel"}
TEMPLATE = "This text is {}."


def entailment(t: Texts) -> Task:
    """zero-shot-classification: what kind of text is this?"""
    rng = np.random.default_rng(0)
    kinds = list(KINDS.values())

    def kinds_of(speeches: Sequence[str], novel: Sequence[str], mails: Sequence[dict[str, Any]]) -> list[Any]:
        made = [(mail["text"], KINDS[("ham", "spam")[mail["label"]]]) for mail in mails]
        made += [(run, KINDS["speech"]) for speech in speeches for run in runs_of(speech, 3)[:30]]
        return made + [(run, KINDS["novel"]) for chapter in novel for run in runs_of(chapter, 3)[:30]]

    made = []
    for text, kind in kinds_of(t.speeches[::4], t.novel[10:], t.mails):
        other = kinds[(kinds.index(kind) + int(rng.integers(1, 4))) % 4]
        made += [(text, kind, 0), (text, other, 1)]
    rows = t.encode([(text, TEMPLATE.format(kind)) for text, kind, _ in made])

    def ask(model: Any) -> float:
        asked = kinds_of(t.held[:4], t.novel[:5], t.held_mails[:100])
        found = model(
            [text for text, _ in asked], candidate_labels=kinds, hypothesis_template=TEMPLATE, truncation=True
        )
        return share(one.label == kind for one, (_, kind) in zip(found, asked, strict=True))

    config = {"id2label": {0: "entailment", 1: "contradiction"}}
    loss = labelled(rows, [label for _, _, label in made])
    return Task(
        "BertForSequenceClassification", ids(rows), loss, ask, "accuracy of 4", config, "zero-shot-classification"
    )


TASKS: dict[str, Callable[[Texts], Task]] = {
    "text-classification": spam,
    "token-classification": names,
    "question-answering": blanks,
    "fill-mask": words,
    "next-sentence-prediction": order,
    "multiple-choice": choices,
    "text-ranking": ranking,
    "zero-shot-classification": entailment,
}


def ids(rows: Sequence[Encoding]) -> list[list[int]]:
    return [row.ids for row in rows]


def share(right: Any) -> float:
    return float(np.mean(list(right)))


def runs_of(text: str, length: int) -> list[str]:
    """Runs of `length` sentences that follow each other, without overlap."""
    found = sentences(text)
    runs = [found[i : i + length] for i in range(0, len(found) - length + 1, length)]
    return [" ".join(run) for run in runs if all(run)]
