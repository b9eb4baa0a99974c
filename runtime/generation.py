"""The loop that generates: one call of the graph, one choice a row, rows that leave when they are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.cache import GROWTH, KVCache
from torchless.decoder import Decoder, Float
from torchless.sampling import Guess, Sampler, log_softmax
from torchless.stopping import FinishReason

AHEAD = 4096  # tokens that a row has room for at first
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


@dataclass(frozen=True)
class Speculation:
    """How guesses did: `steps` of the model, after the one that read the prompt, checked `drafted` tokens.

    A step gives the `accepted` ones of its guesses and one token more.
    """

    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def accepted_per_step(self) -> float:
        return self.accepted / self.steps if self.steps else 0.0


@dataclass
class Row:
    """One text to make: where it begins, how its tokens are chosen, and who may end it before its budget.

    ends: called before each chunk that is read (with None) and with every token; gives the reason to end, or None.
    logprobs: how many of the likeliest tokens are told with each, or None for no probabilities.
    keep: how many of the first tokens stay when the context is full and the newest are read again; None: it ends
    with the context.
    complete: whether what was added [T] is all that a constraint allows.
    progress: called with each chunk's end: how many tokens of the window were read, and how many there are.
    """

    prompt: Sequence[int]
    budget: int
    sampler: Sampler
    stops: frozenset[int] = frozenset()
    ends: Callable[[Token | None], FinishReason | None] = lambda token: None
    logprobs: int | None = None
    keep: int | None = None
    complete: Callable[[npt.NDArray[np.int64]], bool] = lambda added: False
    progress: Callable[[int, int], object] = lambda read, total: None
    speculation: Speculation | None = None  # filled in by drafts.speculate

    def __post_init__(self) -> None:
        room = min(self.budget, AHEAD)
        self._ids = np.concatenate([np.asarray(self.prompt, np.int64), np.empty(room, np.int64)])
        self.added = 0

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The prompt and what was added [T], a view."""
        return self._ids[: len(self.prompt) + self.added]

    @property
    def slides(self) -> bool:
        return self.keep is not None

    def window(self, context: int) -> npt.NDArray[np.int64]:
        """What of the text so far the model reads: all, or past the context its first `keep` and its newest tokens.

        Half of what else fits is newest ones: so many more come before the next window is read.
        """
        ids = self.ids
        if self.keep is None or len(ids) <= context:
            return ids
        return np.concatenate([ids[: self.keep], ids[len(ids) - (context - self.keep) // 2 :]])

    def slots(self, context: int) -> int:
        """How many the cache should have from the beginning: growing right after the prompt would copy it."""
        return min(len(self.window(context)) + min(self.budget, GROWTH), context)

    def read(self, decoder: Decoder, cache: KVCache, place: int = 0, *, without: int = 0) -> Float | None:
        """Logits [V] after the window; None for a caller who has had enough before its end.

        What the cache's row holds is taken for the window's beginning. without: how many of its last tokens a step
        is to take.
        """
        window = self.window(cache.limit)
        end = len(window) - without

        def enough() -> bool:
            read = int(cache.lengths[place])
            self.progress(read, end)
            return read < end and self.ends(None) is not None

        logits = decoder.extend(cache, window[cache.lengths[place] : end], row=place, enough=enough)
        return logits[-1] if cache.lengths[place] == end else None

    def choose(self, index: int, logits: Any, guess: Guess | None = None) -> Token:
        """The next token, from logits [V]. A guess changes no likelihood: see Sampler."""
        end = len(self.prompt) + self.added
        if end == len(self._ids):  # doubled, so that little is copied in the loop
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
        chosen = self.sampler(logits, self._ids[:end], self.added, guess)
        self._ids[end] = chosen
        self.added += 1
        reason: FinishReason | None = "length" if self.added == self.budget else None
        if chosen in self.stops or self.complete(self.ids[len(self.prompt) :]):
            reason = "stop"
        token = Token(index, chosen, reason, *self._told(logits, chosen))
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


def report(rows: Sequence[Row], progress: Callable[[int, int], object], context: int) -> None:
    """Let `progress` know, with every chunk, how many tokens of all windows were read, and how many there are."""
    totals = [len(row.window(context)) if row.budget > 0 else 0 for row in rows]  # others are not read
    read = [0] * len(rows)

    def part(index: int) -> Callable[[int, int], None]:
        def tell(done: int, total: int) -> None:
            read[index], totals[index] = done, total
            progress(sum(read), sum(totals))

        return tell

    for index, row in enumerate(rows):
        row.progress = part(index)


class Batch:
    """Texts that are continued together in one cache: others join as they leave.

    size: how many at most. slots: room that the cache has for each from the beginning.
    failed: told of the text whose choice of a token has failed, and leaves; raises, where the others end with it.
    """

    def __init__(
        self, decoder: Decoder, size: int, slots: int = 0, failed: Callable[[int, Exception], object] | None = None
    ) -> None:
        self._decoder = decoder
        self._cache = decoder.new_cache(size, joined=0)
        self._cache.reserve(slots)
        self._step = decoder.stepper(self._cache)
        self._failed = failed
        self._rows: list[Row] = []
        self._last: list[Token] = []  # of each row

    def __len__(self) -> int:
        return len(self._last)

    def join(self, index: int, row: Row) -> Token | None:
        """Read a text, known as `index`, and choose its next token; None for one that has ended before that."""
        if row.ends(None) is not None:
            return None
        if self._cache.reserve(row.slots(self._cache.limit)):
            self._step = self._decoder.stepper(self._cache)  # the old one writes to the old buffer
        place = self._cache.join()
        try:
            logits = row.read(self._decoder, self._cache, place)
            token = None if logits is None else row.choose(index, logits)
        except BaseException:
            self._cache.drop(place)  # the last one: the others stay where they are
            raise
        if token is None:
            self._cache.drop(place)
            return None
        self._rows.append(row)
        self._last.append(token)
        self._let_go()
        return token

    def step(self) -> Iterator[Token]:
        """One token more for each; those that have got their last one leave."""
        for place in reversed(range(len(self))):
            row = self._rows[place]
            if row.keep is not None and self._cache.lengths[place] == self._cache.limit:
                # GPT-2's positions are inside its keys: only the first tokens, which stay in place, keep theirs.
                self._cache.lengths[place] = row.keep
                if row.read(self._decoder, self._cache, place, without=1) is None:
                    self._drop(place)
        if not self._last:
            return
        logits = self._step([token.id for token in self._last])
        failed = []
        for place, row in enumerate(self._rows):
            index = self._last[place].prompt
            try:
                self._last[place] = row.choose(index, logits[place])
            except Exception as error:
                if self._failed is None:
                    raise
                self._failed(index, error)
                failed.append(place)
            else:
                yield self._last[place]
        self._let_go(failed)

    def _let_go(self, also: Sequence[int] = ()) -> None:
        """Rows are gone through backwards: a dropped one's place is taken by one seen before."""
        for place in reversed(range(len(self))):
            if self._last[place].finish_reason or place in also:
                self._drop(place)

    def _drop(self, place: int) -> None:
        self._cache.drop(place)
        self._rows[place], self._last[place] = self._rows[-1], self._last[-1]
        self._rows.pop()
        self._last.pop()


def decode(decoder: Decoder, rows: Sequence[Row], together: int = ROWS) -> Iterator[Token]:
    """Yield every new token of every row, as it is chosen. A budget of 0 yields nothing for its row.

    Prompts are read one by one, and up to `together` texts are continued at once; when one is done, it leaves
    the batch and the next prompt takes its place. One that ends while its window is read again yields no more.
    """
    waiting = deque(index for index, row in enumerate(rows) if row.budget > 0)
    slots = max((rows[i].slots(decoder.context_length) for i in waiting), default=0)
    batch = Batch(decoder, min(together, len(waiting)), slots)
    while waiting or len(batch):
        while waiting and len(batch) < together:
            index = waiting.popleft()
            if (token := batch.join(index, rows[index])) is not None:
                yield token
        yield from batch.step()
