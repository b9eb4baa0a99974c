"""One thread a model continues the texts of all requests together: new ones join the batch as others leave it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torchless.decoder import Decoder
from torchless.generation import Batch, Row, Token
from torchless.reply import Reply
from torchless.serve.request_error import RequestError, busy, of_error, stopping
from torchless.stopping import FinishReason

log = logging.getLogger("torchless.serve")


@dataclass(frozen=True)
class Piece:
    """What has come of one text since the last piece: text that is certain, and tokens; the last has a reason."""

    index: int  # of the text in its job
    text: str
    tokens: list[Token]
    finish_reason: FinishReason | None


class Job:
    """The texts of one request, and what the event loop that has asked hears of them.

    news: pieces as they come with `streams`, else one for each text that is whole; a RequestError ends them all. A
    text has no more pieces than tokens, and no more tokens than the context: nobody has to wait for a slow reader.
    """

    def __init__(self, *, streams: bool) -> None:
        self.streams = streams
        self.cancelled = threading.Event()  # set: its texts leave with their next token
        self.texts: list[Text] = []
        self.news: asyncio.Queue[Piece | RequestError] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def write(self, rows: list[Row], replies: list[Reply]) -> None:
        pairs = zip(rows, replies, strict=True)
        self.texts = [Text(self, index, row, reply) for index, (row, reply) in enumerate(pairs)]

    def tell(self, news: Piece | RequestError) -> None:
        """From the engine's thread. A loop that has closed has nobody who waits."""
        try:
            self._loop.call_soon_threadsafe(self.news.put_nowait, news)
        except RuntimeError:
            self.cancelled.set()


@dataclass(eq=False)
class Text:
    """One text of a job: its row in the batch, and what was not told yet."""

    job: Job
    index: int
    row: Row
    reply: Reply
    untold: list[Token] = field(default_factory=list)

    def hear(self, token: Token) -> None:
        self.untold.append(token)
        if token.finish_reason:
            self.end(token.finish_reason)
        elif self.job.streams and (piece := self.reply.take()):
            self._tell(piece, None)

    def end(self, reason: FinishReason) -> None:
        self._tell(self.reply.take(), reason)

    def _tell(self, text: str, reason: FinishReason | None) -> None:
        tokens, self.untold = self.untold, []
        self.job.tell(Piece(self.index, text, tokens, reason))


class Engine:
    """Continues up to `size` texts at once; more wait. steps: of the model so far, each a token for every text."""

    def __init__(self, decoder: Decoder, size: int, name: str) -> None:
        self.steps = 0
        self._decoder, self._size = decoder, size
        self._numbers = itertools.count()
        self._running: dict[int, Text] = {}
        self._waiting: deque[Text] = deque()
        self._wake = threading.Condition()  # of _waiting and _stopped
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name=f"torchless-{name}", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Continue a job's texts, as soon as there is room."""
        with self._wake:
            if self._stopped:
                raise stopping()
            self._waiting.extend(job.texts)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Nobody wants the rest of a job; one that is done is none the worse."""
        job.cancelled.set()
        with self._wake:
            if any(text.job is job for text in self._waiting):
                self._waiting = deque(text for text in self._waiting if text.job is not job)

    def stop(self) -> None:
        """Tell all who wait that nothing more comes."""
        with self._wake:
            self._stopped = True
            self._wake.notify()

    def join(self, timeout: float) -> None:
        """Wait until the thread has stopped."""
        self._thread.join(timeout)

    def _next(self, batch: Batch | None) -> Text | None:
        """The text that may join, or None; waits where nothing else is to do."""
        with self._wake:
            while batch is None and not self._waiting and not self._stopped:
                self._wake.wait()
            full = batch is not None and len(batch) >= self._size
            return self._waiting.popleft() if self._waiting and not full else None

    def _work(self) -> None:
        batch: Batch | None = None
        while True:
            text = self._next(batch)
            if self._stopped:
                break
            batch = batch or Batch(self._decoder, self._size, failed=self._fail)
            try:
                if text is not None:  # one a step: those that run go on while many come
                    self._join(batch, text)
                if len(batch):
                    self.steps += 1
                    for token in batch.step():
                        self._hear(token)
            except Exception as error:  # of a step, which all of them share
                log.exception("a step failed")
                for number in [*self._running]:
                    self._fail(number, error)
                batch = None
            if batch is not None and not len(batch):
                batch = None  # its memory goes back
        self._end([text] if text is not None else [])

    def _join(self, batch: Batch, text: Text) -> None:
        number = next(self._numbers)
        self._running[number] = text
        try:
            if text.row.budget == 0:
                del self._running[number]
                text.end("length")
            elif (token := batch.join(number, text.row)) is not None:
                self._hear(token)
            else:  # by its caller, or by the bundle's own max_time
                del self._running[number]
                text.end(text.reply.reason)
        except Exception as error:
            self._fail(number, error)

    def _hear(self, token: Token) -> None:
        text = self._running.get(token.prompt)
        if text is None:  # it has failed
            return
        if token.finish_reason:
            del self._running[token.prompt]
        text.hear(token)

    def _fail(self, number: int, error: Exception) -> None:
        """A text cannot go on: its job ends, the others do not notice."""
        text = self._running.pop(number, None)
        if text is not None and not text.job.cancelled.is_set():
            refusal = of_error(error)
            if refusal.status == 500:
                log.error("a text could not be continued", exc_info=error)
            self.cancel(text.job)
            text.job.tell(refusal)

    def _end(self, more: list[Text]) -> None:
        with self._wake:
            left = {text.job for text in (*more, *self._running.values(), *self._waiting)}
            self._waiting.clear()
        self._running.clear()
        for job in left:
            job.cancelled.set()
            job.tell(stopping())


class Gate:
    """Counts what is in the house, so that there is never more than it can hold. For one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside = 0

    @contextmanager
    def hold(self, count: int, param: str | None = None) -> Iterator[None]:
        """Room for so many texts. RequestError where there is none now, or never is."""
        if count > self.limit:
            raise RequestError(
                400, f"{count:,} texts are more than this server takes at once: {self.limit:,}", param=param
            )
        if self.inside + count > self.limit:
            raise busy(self.inside)
        self.inside += count
        try:
            yield
        finally:
            self.inside -= count
