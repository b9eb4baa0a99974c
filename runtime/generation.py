"""The loop that generates: one call of the graph, one choice a row, rows that leave when they are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchless.decoder import Decoder
from torchless.sampling import Sampler, log_softmax
from torchless.stopping import FinishReason

ROWS = 16  # texts that are continued together; more of them wait until one is done


@dataclass(frozen=True)
class Token:
    """One new token of one prompt; the last of a prompt says why it is the last.

    logprob and top: the natural logarithm of its probability, and the likeliest (id, logprob), where asked for.
    """

    prompt: int  # which of the prompts
    id: int
    finish_reason: FinishReason | None
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class Row:
    """One text to make: where it begins, how its tokens are chosen, and who may end it before its budget.

    ends: called before the prompt is read (with None) and with every token; gives the reason to end, or None.
    logprobs: how many of the likeliest tokens are told with each, or None for no probabilities.
    """

    prompt: Sequence[int]
    budget: int
    sampler: Sampler
    stops: frozenset[int] = frozenset()
    ends: Callable[[Token | None], FinishReason | None] = lambda token: None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        self._ids = np.empty(len(self.prompt) + self.budget, np.int64)  # nothing is copied in the loop
        self._ids[: len(self.prompt)] = self.prompt
        self._added = 0

    def choose(self, index: int, logits: Any) -> Token:
        """The next token, from logits [V]."""
        end = len(self.prompt) + self._added
        chosen = self.sampler(logits, self._ids[:end], self._added)
        self._ids[end] = chosen
        self._added += 1
        reason: FinishReason | None = "length" if self._added == self.budget else None
        token = Token(index, chosen, "stop" if chosen in self.stops else reason, *self._told(logits, chosen))
        if (earlier := self.ends(token)) is not None and token.finish_reason != "stop":
            token = Token(index, chosen, earlier, token.logprob, token.top)
        return token

    def _told(self, logits: Any, chosen: int) -> tuple[Any, ...]:
        """The model's own probabilities, before any setting has changed them."""
        if self.logprobs is None:
            return ()
        logs = log_softmax(logits)
        best = np.argsort(-logs, kind="stable")[: self.logprobs]
        return float(logs[chosen]), [(int(i), float(logs[i])) for i in best]


def decode(decoder: Decoder, rows: Sequence[Row], together: int = ROWS) -> Iterator[Token]:
    """Yield every new token of every row, as it is chosen. A budget of 0 yields nothing for its row.

    Prompts are read one by one, and up to `together` texts are continued at once; when one is done, it leaves
    the batch and the next prompt takes its place.
    """
    waiting = deque(index for index, row in enumerate(rows) if row.budget > 0)
    cache = decoder.new_cache(min(together, len(waiting)), joined=0)
    cache.reserve(max((len(rows[i].prompt) for i in waiting), default=0))
    step = decoder.stepper(cache)
    last: list[Token] = []
    while waiting or last:
        while waiting and len(last) < together:
            index = waiting.popleft()
            if rows[index].ends(None) is None:
                place = cache.join()
                logits = decoder.extend(cache, rows[index].prompt, row=place)[-1]
                last.append(rows[index].choose(index, logits))
                yield last[-1]
                _let_go(cache, last)
        if last:
            batch = step([token.id for token in last])
            for place, token in enumerate(last):
                last[place] = rows[token.prompt].choose(token.prompt, batch[place])
                yield last[place]
            _let_go(cache, last)


def _let_go(cache: Any, last: list[Token]) -> None:
    for place in reversed(range(len(last))):  # backwards: a dropped row's place is taken by one seen before
        if last[place].finish_reason:
            cache.drop(place)
            last[place] = last[-1]
            last.pop()
