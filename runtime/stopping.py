"""Why a text ends before its budget: a string that appears, a deadline, a caller that has had enough."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torchless.errors import InputError

FinishReason = Literal["stop", "length", "stop_string", "callback", "deadline", "cancelled"]


class StopStrings:
    """Pieces of text in, pieces out, up to the first of some strings; nothing of it is ever given out.

    What may still become one of them is held back until the next piece decides.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that is certain now; "" once a string was found."""
        if self.found:
            return ""
        text = self._held + piece
        starts = [start for one in self._strings if (start := text.find(one)) >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        certain = len(text) - max((_overlap(text, one) for one in self._strings), default=0)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, string: str) -> int:
    """How much of the text's end is the beginning of the string."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)


@dataclass(frozen=True)
class Patience:
    """When a caller no longer waits: a moment, an event that another thread sets, a function that says so.

    deadline: of time.monotonic, in seconds. callback: called with all ids that were added; true ends the text.
    Raises InputError for an event that is none, and for a callback that cannot be called.
    """

    deadline: float | None = None
    cancel: threading.Event | None = None
    callback: Callable[[Sequence[int]], bool] | None = None

    def __post_init__(self) -> None:
        if self.cancel is not None and not callable(getattr(self.cancel, "is_set", None)):
            raise InputError(f"cancel is a {type(self.cancel).__name__}: give a threading.Event")
        if self.callback is not None and not callable(self.callback):
            raise InputError(f"callback is a {type(self.callback).__name__}: give a function of the token ids")

    @classmethod
    def within(
        cls,
        max_time: float | None,
        cancel: threading.Event | None,
        callback: Callable[[Sequence[int]], bool] | None,
    ) -> Patience:
        """With a deadline so many seconds from now, or without one."""
        return cls(None if max_time is None else time.monotonic() + max_time, cancel, callback)

    def ends(self, ids: Sequence[int]) -> FinishReason | None:
        if self.cancel is not None and self.cancel.is_set():
            return "cancelled"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "deadline"
        if self.callback is not None and ids and self.callback(ids):
            return "callback"
        return None
