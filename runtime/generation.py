"""The loop that generates: one call of the graph, one choice, one reason to stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from torchless.decoder import Decoder
from torchless.sampling import Sampler

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Token:
    """One new token of one prompt; the last of a prompt says why it is the last."""

    prompt: int  # which of the prompts
    id: int
    finish_reason: FinishReason | None


def decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    samplers: Sequence[Sampler],
    budgets: Sequence[int],
    stops: frozenset[int] = frozenset(),
) -> Iterator[Token]:
    """Yield every new token of every prompt, as it is chosen. A budget of 0 yields nothing for its prompt.

    Prompts are read one by one and continued together; one that is done leaves the batch.
    """
    active = [index for index, budget in enumerate(budgets) if budget > 0]
    rows = {index: Row(prompts[index], budgets[index], samplers[index], stops) for index in active}
    cache = decoder.new_cache(len(active))
    cache.reserve(max((len(prompts[i]) for i in active), default=0))
    step = decoder.stepper(cache)
    last: list[Token] = []
    for place, index in enumerate(active):
        last.append(rows[index].choose(index, decoder.extend(cache, prompts[index], row=place)[-1]))
        yield last[-1]
    while True:
        for place in reversed(range(len(last))):  # backwards: a dropped row's place is taken by one seen before
            if last[place].finish_reason:
                cache.drop(place)
                last[place] = last[-1]
                last.pop()
        if not last:
            return
        logits = step([token.id for token in last])
        for place, token in enumerate(last):
            last[place] = rows[token.prompt].choose(token.prompt, logits[place])
            yield last[place]


class Row:
    """One text in the making: its ids so far, and how the next one is chosen."""

    def __init__(self, prompt: Sequence[int], budget: int, sampler: Sampler, stops: frozenset[int]) -> None:
        self._ids = np.empty(len(prompt) + budget, np.int64)  # room for all of it: nothing is copied in the loop
        self._ids[: len(prompt)] = prompt
        self._start, self._budget = len(prompt), budget
        self._sampler, self._stops = sampler, stops
        self._added = 0

    def choose(self, index: int, logits: Any) -> Token:
        """The next token, from logits [V]."""
        end = self._start + self._added
        token = self._sampler(logits, self._ids[:end], self._added)
        self._ids[end] = token
        self._added += 1
        reason: FinishReason | None = "length" if self._added == self._budget else None
        return Token(index, token, "stop" if token in self._stops else reason)
