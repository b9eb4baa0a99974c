"""What each task is asked in parity.py, and what is answered: here, and by the pipelines of transformers.

A check yields, for each text, two answers: ours and theirs. An answer is what was said (labels, places, token ids)
and how surely (scores). Tasks without a pipeline are answered by the model in torch, called by hand.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import transformers
from parity_models import EXAMPLES, Subject

from torchless.spans import trim

Answer = tuple[list[Any], list[float]]
Check = Callable[[Any, Subject], Iterator[tuple[Answer, Answer]]]

LENGTH = 300  # characters of a text: pipelines cut none, so all have to fit the model


def read_sentences() -> list[tuple[str, str]]:
    """A sentence and the one after it, from the middle of each address."""
    pairs = []
    for address in (EXAMPLES / "data" / "heldout-sotu.txt").read_text(encoding="utf-8").split("\n\n"):
        sentences = [one for one in re.split(r"(?<=[.!?]) +", address) if 40 < len(one) < LENGTH]
        pairs.append((sentences[len(sentences) // 2], sentences[len(sentences) // 2 + 1]))
    return pairs


def read_mails(count: int) -> list[str]:
    """Evenly from the whole file: the subject and the lines after it."""
    lines = (EXAMPLES / "data" / "heldout-mails.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"][:LENGTH] for line in lines[:: len(lines) // count]][:count]


def read_long(mails: int) -> list[str]:
    """Whole mails, evenly from the file, and the beginning of each address."""
    lines = (EXAMPLES / "data" / "heldout-mails.jsonl").read_text(encoding="utf-8").splitlines()
    addresses = (EXAMPLES / "data" / "heldout-sotu.txt").read_text(encoding="utf-8").split("\n\n")
    whole = [json.loads(line)["text"] for line in lines[:: len(lines) // mails]]
    return whole + [address[:1500] for address in addresses]


SENTENCES, MAILS, LONG = read_sentences(), read_mails(10), read_long(50)
TEXTS = [*(first for first, _ in SENTENCES), *MAILS]
PAIRS = [*SENTENCES[::2], *((mail.split("\n")[0], mail.split("\n", 1)[1].strip()) for mail in MAILS[::2])]
QUESTIONS = ["Who wrote this?", "What is offered, and to whom?", "When did it happen?", "How much was spent on it?"]
TOPICS = ["politics", "money", "computers", "war", "a list for mail"]


def answer(said: Iterable[Any], scores: Iterable[float]) -> Answer:
    return list(said), [float(score) for score in scores]


def joined(answers: Iterable[Answer]) -> Answer:
    """Several answers to one text as one."""
    parts = list(answers)
    return [one for said, _ in parts for one in said], [one for _, scores in parts for one in scores]


def pipeline(task: str, subject: Subject, **options: Any) -> Any:
    return transformers.pipeline(
        task, model=options.pop("model", subject.model), tokenizer=subject.tokenizer, device="cpu", **options
    )


def text_classification(ours: Any, subject: Subject) -> Iterator[tuple[Answer, Answer]]:
    texts: list[Any] = [*TEXTS, *PAIRS] if ours.tokenizer.joins_pairs else TEXTS
    theirs = pipeline("text-classification", subject)
    for text, mine in zip(texts, ours(texts, top_k=len(ours.labels)), strict=True):
        given = text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}
        found = theirs(given, top_k=None)
        yield (
            answer(mine.scores, mine.scores.values()),
            answer((one["label"] for one in found), (one["score"] for one in found)),
        )


def zero_shot(ours: Any, subject: Subject) -> Iterator[tuple[Answer, Answer]]:
    """All topics against each other, and each by itself."""
    theirs = pipeline("zero-shot-classification", subject)
    options: list[dict[str, Any]] = [{}, {"multi_label": True, "hypothesis_template": "The text is about {}."}]
    mine = [ours(TEXTS, candidate_labels=TOPICS, top_k=len(TOPICS), **option) for option in options]
    for i, text in enumerate(TEXTS):
        found = [theirs(text, candidate_labels=TOPICS, **option) for option in options]
        yield (
            joined(answer(results[i].scores, results[i].scores.values()) for results in mine),
            joined(answer(one["labels"], one["scores"]) for one in found),
        )


def text_ranking(ours: Any, subject: Subject) -> Iterator[tuple[Answer, Answer]]:
    """As sentence-transformers' CrossEncoder: the sigmoid of the one logit of each pair, best first."""
    passages = [second for _, second in SENTENCES[::2]]
    for query, _ in SENTENCES:
        ranked = ours(query=query, passages=passages)
        scores = torch.cat([subject(subject.encode(query, one)).logits[0].sigmoid() for one in passages])
        order = scores.argsort(descending=True, stable=True)
        yield (
            answer((one.index for one in ranked), (one.score for one in ranked)),
            answer(order.tolist(), scores[order].tolist()),
        )


def token_classification(ours: Any, subject: Subject) -> Iterator[tuple[Answer, Answer]]:
    """Every token or entity, those labelled O too, by every strategy; a place is without the space around it.

    Entities without a character, which transformers has where a byte-level tokenizer reads two spaces in a row,
    are none here.
    """
    if subject.cls == "ElectraForPreTraining":
        yield from replaced_tokens(ours, subject)
        return
    strategies = ("none", "simple", "first", "average", "max")
    theirs = {one: pipeline("token-classification", subject, aggregation_strategy=one) for one in strategies}
    mine = [ours(TEXTS, aggregation_strategy=one, ignore_labels=[]) for one in strategies]
    for i, text in enumerate(TEXTS):
        entities = [one for results in mine for one in results[i]]
        found = [one for pipe in theirs.values() for one in pipe(text, ignore_labels=[])]
        found = [one for one in found if one["start"] < one["end"]]
        places = [trim(text, one["start"], one["end"]) for one in found]
        labels = [one["entity"] if "entity" in one else one["entity_group"] for one in found]
        yield (
            answer(((one.label, one.start, one.end) for one in entities), (one.score for one in entities)),
            answer(((label, *place) for label, place in zip(labels, places)), (one["score"] for one in found)),
        )


def replaced_tokens(ours: Any, subject: Subject) -> Iterator[tuple[Answer, Answer]]:
    """ELECTRA's discriminator, which no pipeline takes: a token is replaced where its score is above 0."""
    for text, entities in zip(TEXTS, ours(TEXTS), strict=True):
        given = subject.encode(text, return_offsets_mapping=True)
        places = given.pop("offset_mapping")[0, 1:-1].tolist()
        scores = subject(given).logits[0, 1:-1]
        labels = ["replaced" if score > 0 else "original" for score in scores]
        yield (
            answer(((one.label, one.start, one.end) for one in entities), (one.score for one in entities)),
            answer(((label, *place) for label, place in zip(labels, places)), scores.abs().sigmoid()),
        )


def fill_mask(ours: Any, subject: Subject) -> Iterator[tuple[Answer, Answer]]:
    """The five best words for the middle word, and in every other text for one before it, too."""
    texts = []
    for number, text in enumerate(TEXTS):
        words = text.split(" ")
        for i in (len(words) // 2, len(words) // 4)[: 1 + number % 2]:
            words[i] = subject.tokenizer.mask_token
        texts.append(" ".join(words))
    model = transformers.AutoModelForMaskedLM.from_pretrained(subject.folder, dtype=torch.float32).eval()
    theirs = pipeline("fill-mask", subject, model=model)  # the pipeline takes no class of two heads
    for text, mine in zip(texts, ours(texts), strict=True):
        words = [one for part in (mine if isinstance(mine[0], list) else [mine]) for one in part]
        given = theirs(text)
        found = [one for part in (given if isinstance(given[0], list) else [given]) for one in part]
        yield (
            answer((one.token_id for one in words), (one.score for one in words)),
            answer((one["token"] for one in found), (one["score"] for one in found)),
        )


def question_answering(ours: Any, subject: Subject) -> Iterator[tuple[Answer, Answer]]:
    """The best answer, the three best or none, and those of long contexts read in windows."""
    theirs = pipeline("question-answering", subject)
    options: list[dict[str, Any]] = [{}, {"top_k": 3, "handle_impossible_answer": True}]
    windows: list[dict[str, Any]] = [*options, {"max_seq_len": 64, "doc_stride": 24, "max_answer_len": 8}]
    for question, context in zip(itertools.cycle(QUESTIONS), TEXTS):
        mine, found = [], []
        for option in windows:
            one, other = (answering(question=question, context=context, **option) for answering in (ours, theirs))
            mine += one if isinstance(one, list) else [one]
            found += other if isinstance(other, list) else [other]
        yield (
            answer(((one.start, one.end) for one in mine), (one.score for one in mine)),
            answer((trim(context, one["start"], one["end"]) for one in found), (one["score"] for one in found)),
        )


def feature_extraction(ours: Any, subject: Subject) -> Iterator[tuple[Answer, Answer]]:
    """The vectors of all tokens, and the text's: their mean, of length 1 if the bundle says so."""
    theirs = pipeline("feature-extraction", subject)
    for text, mine, vector in zip(TEXTS, ours.tokens(TEXTS), ours(TEXTS), strict=True):
        found = np.array(theirs(text)[0])
        mean = found.mean(axis=0)
        if ours.normalized:
            mean /= np.linalg.norm(mean)
        yield (
            answer(mine.shape, np.concatenate([mine.ravel(), vector])),
            answer(found.shape, np.concatenate([found.ravel(), mean])),
        )


def text_generation(ours: Any, subject: Subject) -> Iterator[tuple[Answer, Answer]]:
    """24 greedy tokens."""
    prompts = [" ".join(text.split()[: 3 + i]) for i, text in enumerate(TEXTS)]
    model = transformers.AutoModelForCausalLM.from_pretrained(subject.folder, dtype=torch.float32).eval()
    theirs = pipeline("text-generation", subject, model=model)  # a bare GPT2Model has no head of its own
    for prompt, mine in zip(prompts, ours(prompts, max_new_tokens=24), strict=True):
        found = theirs(prompt, max_new_tokens=24, do_sample=False, return_tensors=True)[0]["generated_token_ids"]
        yield answer(mine.token_ids, []), answer(found[mine.prompt_tokens :], [])


def multiple_choice(ours: Any, subject: Subject) -> Iterator[tuple[Answer, Answer]]:
    """Which of four sentences, of which one is the true one, comes next; all choices in one padded batch."""
    nexts = [second for _, second in SENTENCES]
    cases = [(context, (nexts[i:] + nexts)[:4]) for i, (context, _) in enumerate(SENTENCES)]
    chosen = ours(context=[context for context, _ in cases], choices=[choices for _, choices in cases])
    for (context, choices), mine in zip(cases, chosen, strict=True):
        given = subject.encode([context] * 4, choices, padding=True)
        lengths = given["attention_mask"].sum(1)
        given = {name: value[None] for name, value in given.items()}  # [1,4,S]
        if subject.cls.endswith("DoubleHeadsModel"):  # which reads padding last, and needs no mask
            ids, last = given["input_ids"], lengths[None] - 1
            scores = subject({"input_ids": ids, "mc_token_ids": last}).mc_logits[0].softmax(0)
        else:
            scores = subject(given).logits[0].softmax(0)
        yield answer([mine.index], mine.scores), answer([int(scores.argmax())], scores.tolist())


def next_sentence(ours: Any, subject: Subject) -> Iterator[tuple[Answer, Answer]]:
    pairs = [*PAIRS, *((first, PAIRS[i - 1][1]) for i, (first, _) in enumerate(PAIRS))]
    for pair, mine in zip(pairs, ours(pairs), strict=True):
        scores = subject(subject.encode(*pair)).logits[0].softmax(0)
        label = ("is_next", "random")[int(scores.argmax())]
        yield answer([mine.label], mine.scores.values()), answer([label], scores.tolist())


CHECKS: dict[str, Check] = {
    "text-generation": text_generation,
    "text-classification": text_classification,
    "token-classification": token_classification,
    "question-answering": question_answering,
    "fill-mask": fill_mask,
    "feature-extraction": feature_extraction,
    "multiple-choice": multiple_choice,
    "next-sentence-prediction": next_sentence,
    "text-ranking": text_ranking,
    "zero-shot-classification": zero_shot,
}
BY_HAND = ("multiple-choice", "next-sentence-prediction", "text-ranking")  # no version of transformers has these
