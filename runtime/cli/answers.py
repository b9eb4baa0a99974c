"""How `torchless run` tells an answer: lines of text, or one JSON object."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

from torchless.cli.forms import FORMS, Item


def print_json(task: str, item: Item, answer: Any) -> None:
    """The item's fields and its answer's."""
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        fields = dataclasses.asdict(answer)
        for name in ("perplexity", "bits_per_byte"):  # of a Score, which computes them; JSON has no NaN
            if hasattr(answer, name):
                value = getattr(answer, name)
                fields[name] = None if math.isnan(value) else value
    else:
        plain = answer.tolist() if hasattr(answer, "tolist") else answer
        fields = {FORMS[task].answers: json.loads(json.dumps(plain, default=dataclasses.asdict))}
    print(json.dumps({**item, **fields}, ensure_ascii=False), flush=True)


def print_lines(item: Item, answer: Any, *, ranked: bool) -> None:
    """A line for each row, its cells with tabs between. ranked: all labels that a classification has kept."""
    for row in _rows(item, answer, ranked):
        print(*row, sep="\t")


def _rows(item: Item, answer: Any, ranked: bool) -> Iterator[tuple[str, ...]]:
    if isinstance(answer, list):  # entities, answers, candidates (of several masks: lists of them), passages
        for one in answer:
            yield from _rows(item, one, ranked)
    elif hasattr(answer, "tolist"):
        yield (json.dumps(answer.tolist()),)
    elif hasattr(answer, "finish_reason"):
        yield (answer.text,)
    elif hasattr(answer, "perplexity"):
        for (start, end), logprob in zip(answer.offsets, answer.logprobs, strict=True):
            yield f"{logprob:.4f}", json.dumps(item["text"][start:end], ensure_ascii=False)
        yield f"{answer.perplexity:.4f}", "perplexity"
    elif hasattr(answer, "scores") and hasattr(answer, "label"):
        scores = answer.scores if ranked else {answer.label: answer.score}
        yield from ((label, f"{score:.4f}") for label, score in scores.items())
    elif hasattr(answer, "scores"):
        yield str(answer.index), f"{answer.score:.4f}", _cell(item["choices"][answer.index])
    elif hasattr(answer, "sequence"):
        yield f"{answer.score:.4f}", answer.token, answer.sequence
    elif hasattr(answer, "start"):
        found = (answer.label, _cell(answer.word)) if hasattr(answer, "word") else (_cell(answer.answer),)
        yield found[0], f"{answer.score:.4f}", *found[1:], str(answer.start), str(answer.end)
    else:
        yield str(answer.index), f"{answer.score:.4f}", _cell(item["passages"][answer.index])


def _cell(text: str) -> str:
    """On one line, without tabs."""
    return " ".join(text.split())
