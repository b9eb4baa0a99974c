"""How a list is worked off: so many texts in one run, somebody told how far it is, somebody who may end it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torchless.arguments import check_count
from torchless.errors import CancelledError, InputError
from torchless.memory import LARGE, give_back_freed

T = TypeVar("T")
R = TypeVar("R")

BATCH_SIZE = 16
BLOCK = 1024  # items that are tokenized ahead: enough to sort by length, and a long list never lies in memory whole


class Batching:
    """One call over a list. `cancel` is heard with every text that is tokenized and before every run.

    batch_size: texts in one run. progress: called after every run with the number of items that are done and the
    number of all; within a block of 1,024 it is the share of its runs. Raises InputError for wrong arguments.
    """

    def __init__(
        self,
        batch_size: int = BATCH_SIZE,
        cancel: threading.Event | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self.batch_size = check_count("batch_size", batch_size)
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise InputError(f"cancel is a {type(cancel).__name__}: give a threading.Event")
        if progress is not None and not callable(progress):
            raise InputError(f"progress is a {type(progress).__name__}: give a function of two counts of texts")
        self._cancel, self._progress = cancel, progress
        self._start = self._size = self._total = self._told = 0
        self._large = False

    def answers(self, given: Sequence[T], answer: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        """What `answer` gives for each item, asked block by block. A CancelledError holds those of whole blocks."""
        found: list[R] = []
        try:
            for part in self.blocks(given):
                found += answer(part)
        except CancelledError as error:
            error.results = found
            raise
        return found

    def blocks(self, given: Sequence[T]) -> Iterator[Sequence[T]]:
        """The items in blocks; each is taken for done when the next one is asked for."""
        self._total = len(given)
        try:
            for start in range(0, len(given), BLOCK):
                part = given[start : start + BLOCK]
                self._start, self._size = start, len(part)
                self.check()
                yield part
                self._tell(start + len(part))
        finally:
            if self._large:
                give_back_freed()

    def each(self, items: Sequence[T]) -> Iterator[T]:
        """The items one by one, as long as nobody cancels."""
        for item in items:
            self.check()
            yield item

    def check(self) -> None:
        """Raise CancelledError once the event is set."""
        if self._cancel is not None and self._cancel.is_set():
            raise CancelledError(f"the call was cancelled when {self._told:,} of {self._total:,} texts were done")

    def ran(self, done: int, rows: int, tokens: int) -> None:
        """`done` of the `rows` that a block has made were run, the last of them in a batch of so many tokens."""
        self._large |= tokens > LARGE
        self._tell(self._start + min(self._size * done // rows, self._size - 1))

    def _tell(self, done: int) -> None:
        if done > self._told:
            self._told = done
            if self._progress is not None:
                self._progress(done, self._total)
