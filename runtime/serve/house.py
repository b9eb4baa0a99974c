"""A model behind the endpoints: its threads, and how many requests of it are inside."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torchless.batching import Batching
from torchless.errors import CancelledError, InputError, TorchlessError
from torchless.generation_config import GenerationConfig
from torchless.model import Fit, Model
from torchless.serve.asking import Asked
from torchless.serve.engine import Engine, Gate, Job
from torchless.serve.formats import Names
from torchless.serve.options import Options
from torchless.serve.request_error import stopping
from torchless.stopping import Patience
from torchless.tasks.embedding import Embedding
from torchless.tasks.text_classification import TextClassification
from torchless.tasks.text_generation import TextGeneration

T = TypeVar("T")

PREPARING = 2  # threads that make token ids of prompts


class House:
    """One model and its name. Subclasses answer."""

    def __init__(self, name: str, model: Model, limit: int, threads: int) -> None:
        model.tokenizer  # noqa: B018  (an error of the bundle now, and not in the first request)
        self.name, self.model = name, model
        self.gate = Gate(limit)
        self.stopped = False
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"torchless-{name}")

    async def run(self, work: Callable[[], T]) -> T:
        """Do this in a thread of the model's own: the event loop never computes."""

        def unless_stopped() -> T:
            if self.stopped:
                raise stopping()
            return work()

        try:
            doing = asyncio.get_running_loop().run_in_executor(self._threads, unless_stopped)
        except RuntimeError:
            raise stopping() from None
        return await doing

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting) texts or requests."""
        return min(self.gate.inside, 1), max(0, self.gate.inside - 1)

    def stop(self) -> None:
        """What waits for a thread is refused by it: nobody would be told of a future that is cancelled."""
        self.stopped = True
        self._threads.shutdown(wait=False)


class Generating(House):
    """A GPT, and the engine that continues its texts."""

    model: TextGeneration

    def __init__(self, name: str, model: TextGeneration, options: Options) -> None:
        super().__init__(name, model, options.batch_size + options.queue, PREPARING)
        self.engine = Engine(model.decoder, options.batch_size, name)

    @functools.cached_property
    def names(self) -> Names:
        return Names(self.model.tokenizer, self.model.decoder.vocab_size)

    @property
    def load(self) -> tuple[int, int]:
        running = self.engine.running
        return running, max(0, self.gate.inside - running)

    def stop(self) -> None:
        self.engine.stop()
        super().stop()


class Reading(House):
    """An encoder: one request at a time has all cores, the next ones wait."""

    def __init__(self, name: str, model: Model, options: Options) -> None:
        super().__init__(name, model, 1 + options.queue, 1)
        self._reading: threading.Event | None = None  # cancels the request that is read

    async def read(
        self, texts: Sequence[Any], cancelled: threading.Event, **settings: Any
    ) -> tuple[list[Any], int]:
        """What the model says of each text, and how many tokens they are. Ends early once `cancelled`."""

        def work() -> tuple[list[Any], int]:
            self._reading = cancelled
            if self.stopped:
                raise stopping()
            fit, batching = Fit(settings.get("truncation", False)), Batching(cancel=cancelled)
            try:
                found = self.model(list(texts), cancel=cancelled, **settings)  # type: ignore[operator]
                return list(found), sum(len(self.model.encode(text, fit).ids) for text in batching.each(texts))
            except CancelledError:
                raise stopping() from None

        return await self.run(work)

    def stop(self) -> None:
        super().stop()
        if self._reading is not None:
            self._reading.set()


def house(name: str, model: Model, options: Options) -> House:
    """The one for a model's task. InputError for a task that no endpoint has."""
    if isinstance(model, TextGeneration):
        return Generating(name, model, options)
    if isinstance(model, Embedding | TextClassification):
        return Reading(name, model, options)
    raise InputError(
        f"{name}: no endpoint answers for {model.bundle.manifest.task}: give bundles for text-generation, "
        "feature-extraction or text-classification"
    )


def prepare(
    house: Generating,
    job: Job,
    asked: Asked,
    prompts: list[list[int]],
    end: Callable[[GenerationConfig], GenerationConfig] = lambda config: config,
) -> GenerationConfig:
    """Give a job its texts; their settings, to which `end` adds. RequestError for those that cannot be met."""
    try:
        config = end(asked.config(house.model, prompts))
        each = [prompt for prompt in prompts for _ in range(config.num_return_sequences)]
        job.write(*house.model.rows(each, config, Patience.within(config.max_time, job.cancelled, None)))
    except TorchlessError as error:
        raise asked.refused(error) from None
    return config
