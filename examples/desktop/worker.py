"""The thread that owns the models: it answers the newest text only, and stops writing when that text is old."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchless

log = logging.getLogger("desktop")

GPT, BERT = "sotu-gpt-int8", "spam-bert-int8"
STEP = 64  # how many of the oldest tokens go at once, where a text is too long: else every key would move them all


@dataclass(frozen=True)
class Ready:
    """The models are open, or have been told as problems."""


@dataclass(frozen=True)
class Spam:
    request: int
    probability: float  # 0 to 1


@dataclass(frozen=True)
class Piece:
    request: int
    text: str


@dataclass(frozen=True)
class Done:
    """No more comes for this request. reason: that of the generation, such as "cancelled"; "" for no completion."""

    request: int
    tokens: int
    reason: str


@dataclass(frozen=True)
class Problem:
    """What the user should read."""

    text: str


Answer = Ready | Spam | Piece | Done | Problem


class Worker(threading.Thread):
    """Start it, `ask`, and read `answers` from the window's thread; `close` ends it, also in the middle of a text.

    bundles: the folder that holds both. length: tokens of a completion, at most.
    """

    def __init__(self, bundles: Path, length: int = 24) -> None:
        super().__init__(name="models")
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._bundles, self._length = bundles, length
        self._changed = threading.Condition()
        self._text: str | None = None  # what is asked, until the thread takes it
        self._request = 0
        self._cancel = threading.Event()  # of the newest request
        self._closed = False

    def ask(self, text: str) -> int:
        """Complete and judge this text instead of what was asked before. Gives the number that its answers bear."""
        with self._changed:
            self._cancel.set()
            self._cancel = threading.Event()
            self._request += 1
            self._text = text
            self._changed.notify()
            return self._request

    def cancel(self) -> None:
        """Nobody waits any more: the model stops within a token."""
        with self._changed:
            self._cancel.set()
            self._text = None

    def close(self) -> None:
        with self._changed:
            self._cancel.set()
            self._closed = True
            self._changed.notify()

    def run(self) -> None:
        gpt, bert = self._open(GPT), self._open(BERT)
        state = gpt.state() if gpt else None  # what a text shares with the last one is not read again
        self.answers.put(Ready())
        while (asked := self._next()) is not None:
            request, text, cancel = asked
            tokens, reason = 0, ""
            try:
                if bert:
                    found = bert(text, truncation=True)
                    self.answers.put(Spam(request, found.scores["spam"]))
                if gpt and not cancel.is_set():
                    stream = gpt.stream(
                        self._newest_tokens(gpt, text), state=state, cancel=cancel, max_new_tokens=self._length,
                        do_sample=False, repetition_penalty=1.2, stop_strings=["\n"],
                    )  # fmt: skip
                    for piece in stream:
                        self.answers.put(Piece(request, piece))
                    tokens, reason = len(stream.result.token_ids), stream.result.finish_reason
            except Exception as error:  # whatever it is: the window is where somebody can read it
                log.debug("request %d", request, exc_info=True)
                self.answers.put(Problem(str(error) or repr(error)))
            log.info("request %d: %s after %d tokens", request, reason or "no completion", tokens)
            self.answers.put(Done(request, tokens, reason))
        for model in (gpt, bert):
            if model:
                model.close()

    def _open(self, name: str) -> Any:
        if self._closed:
            return None
        try:
            # verify: these are small, and a download that broke off is told before it writes nonsense.
            return torchless.load(self._bundles / name, verify=True)
        except Exception as error:
            log.debug("%s", name, exc_info=True)
            self.answers.put(Problem(str(error) or repr(error)))
            return None

    def _next(self) -> tuple[int, str, threading.Event] | None:
        """What was asked last, once something was; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._text is not None)
            if self._closed or self._text is None:
                return None
            text, self._text = self._text, None
            return self._request, text, self._cancel

    def _newest_tokens(self, gpt: Any, text: str) -> list[int]:
        """The text's end, as much as leaves room for a completion."""
        ids: list[int] = gpt.tokenizer.ids(text)
        over = len(ids) - (gpt.context_length - self._length)
        return ids[-(-over // STEP) * STEP :] if over > 0 else ids
