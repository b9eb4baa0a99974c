"""Questions to the model, many at a time, so that those that cannot be answered lose nobody else's answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from torchless.cli.answers import print_json, print_lines
from torchless.cli.forms import FORMS, Ask, Asked, Item
from torchless.cli.telling import tell
from torchless.errors import TorchlessError


def answer(model: Any, task: str, block: Sequence[Asked], settings: dict[str, Any], as_json: bool) -> int:
    """Print the answers in order, and on standard error why others have none; returns how many those are.

    One prompt is streamed as it comes; other answers are printed when they are whole.
    """
    if (
        task == "text-generation"
        and len(block) == 1
        and block[0].error is None
        and not as_json
        and _grows(model, settings)
    ):
        try:
            stream(model, block[0].item["prompt"], settings)
        except TorchlessError as error:
            return _tell_all(block, [error])
        return 0
    found = answers(FORMS[task].ask, model, [asked.item for asked in block if asked.error is None], settings)
    results = [asked.error or next(found) for asked in block]
    for asked, result in zip(block, results, strict=True):
        if isinstance(result, TorchlessError):
            continue
        if as_json:
            print_json(task, asked.item, result)
        else:
            print_lines(asked.item, result, ranked="top_k" in settings)
    return _tell_all(block, results)


def _grows(model: Any, settings: dict[str, Any]) -> bool:
    """Whether a prompt gets one text that grows, rather than beams or several; the bundle's defaults count."""
    return all(settings.get(name, getattr(model.config, name)) == 1 for name in model.config.SEVERAL)


def answers(ask: Ask, model: Any, items: Sequence[Item], settings: dict[str, Any]) -> Iterator[Any]:
    """An answer for each item, or its error: items that fail together are asked by halves, down to the bad ones."""
    if not items:
        return
    try:
        yield from ask(model, items, settings)
    except TorchlessError as error:
        if len(items) == 1:
            yield error
            return
        half = len(items) // 2
        yield from answers(ask, model, items[:half], settings)
        yield from answers(ask, model, items[half:], settings)


def _tell_all(block: Sequence[Asked], results: Sequence[Any]) -> int:
    """Tell every error with its place; where all have failed for one reason, such as a setting, tell it once."""
    wrong = [(asked, one) for asked, one in zip(block, results, strict=True) if isinstance(one, TorchlessError)]
    if 1 < len(wrong) == len(block) and len({str(error) for _, error in wrong}) == 1:
        tell(wrong[0][1], f"{wrong[0][0].place} and {len(block) - 1} more")
        return len(wrong)
    for asked, error in wrong:
        name = f"(id {json.dumps(asked.item['id'])})" if "id" in asked.item else ""
        tell(error, f"{asked.place} {name}".strip())
    return len(wrong)


def stream(model: Any, prompt: str, settings: dict[str, Any]) -> None:
    pieces = model.stream(prompt, **settings)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)
