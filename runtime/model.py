"""What every task's class has in common: it opens a bundle, closes with `with`, and pickles as its path."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from torchless.arguments import check_count, check_name
from torchless.batching import Batching
from torchless.bundle import Bundle
from torchless.errors import ContextLengthError, InputError, TorchlessError
from torchless.hosted import HostedSession
from torchless.opening import open_folder
from torchless.providers.first import Settings, open_first
from torchless.providers.options import CPU
from torchless.text import TOKENIZER, Text, Tokenizer, check_length, tokenizer_of

if TYPE_CHECKING:
    from tokenizers import Encoding
    from typing_extensions import Self

STRATEGIES = ("longest_first", "only_first", "only_second")
CUT = {"only_first": 0, "only_second": 1}

M = TypeVar("M", bound="Model")


class Model:
    """An open bundle. Calls from several threads at once are safe: a session holds no text's state."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.bundle = bundle
        self.settings = settings
        opened = open_first(bundle, settings)
        self.provider, self.graph = opened.provider, opened.graph
        self._runner: Any = None  # set by the task's class
        self._session: HostedSession | None = opened.session

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        ids = self.bundle.manifest.task == "text-generation"
        return tokenizer_of(self.bundle.file(TOKENIZER), self.bundle.has(TOKENIZER), takes_ids=ids)

    @property
    def session(self) -> HostedSession:
        if self._session is None:
            raise TorchlessError(f"{self.bundle.path} was closed: load it again")
        return self._session

    @property
    def context_length(self) -> int:
        """Tokens that fit, special ones included."""
        return self.bundle.manifest.context_length

    @property
    def runner(self) -> Any:
        """The Decoder or Encoder that runs the session; it goes with it, or the memory would stay."""
        self.session  # noqa: B018  (a closed model says so)
        return self._runner

    def batching(
        self, batch_size: int, cancel: threading.Event | None, progress: Callable[[int, int], object] | None
    ) -> Batching:
        """How a call over a list goes about it. A closed model says so, also for an empty list."""
        self.session  # noqa: B018
        return Batching(batch_size, cancel, progress)

    def close(self) -> None:
        """Give the session's memory back; a call after that is an error."""
        self._session = self._runner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, (type(self), os.path.abspath(self.bundle.path), self.settings)

    def __repr__(self) -> str:
        manifest = self.bundle.manifest
        return (
            f"{type(self).__name__}({str(self.bundle.path)!r}, family={manifest.family!r}, "
            f"precision={self.graph.precision!r}, provider={self.provider.name!r})"
        )

    def encode(self, text: Text, fit: Fit) -> Encoding:
        """Ids with special tokens, cut as `fit` says, else a ContextLengthError for too many."""
        limit = fit.limit(self.context_length)
        encoding = self.tokenizer.encode(text)
        if fit.truncation and len(encoding.ids) > limit:
            strategy = fit.strategy(text)
            if isinstance(text, tuple) and (cut := CUT.get(strategy)) is not None:
                whole = sum(part != cut for part in encoding.sequence_ids)
                if whole >= limit:
                    raise ContextLengthError(
                        f"truncation={strategy!r} leaves {whole:,} tokens whole, the model takes {limit:,} in all: "
                        "shorten the other text"
                    )
            return self.tokenizer.windows(text, limit, strategy=strategy, side=fit.truncation_side)[0]
        check_length(len(encoding.ids), limit, advice="shorten it, or pass truncation=True")
        return encoding


@dataclass(frozen=True)
class Fit:
    """How a text is made to fit, named and meant as in transformers; a wrong value is an InputError.

    truncation: False raises ContextLengthError for a text that is too long; True or "longest_first" cuts it,
    "only_first" and "only_second" cut that text of a pair. max_length: in tokens, special ones included, by
    default the context. truncation_side: "right" cuts the end, "left" the beginning.
    """

    truncation: bool | str = False
    max_length: int | None = None
    truncation_side: str = "right"

    def __post_init__(self) -> None:
        if not isinstance(self.truncation, bool):
            check_name("truncation", self.truncation, STRATEGIES, "True, False, ")
        check_name("truncation_side", self.truncation_side, ("right", "left"))
        if self.max_length is not None:
            object.__setattr__(self, "max_length", check_count("max_length", self.max_length))

    def limit(self, context: int) -> int:
        if self.max_length is not None and self.max_length > context:
            raise InputError(f"max_length={self.max_length:,}: the model takes {context:,} tokens")
        return self.max_length or context

    def strategy(self, text: Text) -> str:
        """A text that is no pair is always the first."""
        if self.truncation == "only_second" and not isinstance(text, tuple):
            raise InputError("truncation='only_second' needs a pair of texts, and got one")
        return self.truncation if isinstance(self.truncation, str) else "longest_first"


def open_as(kind: type[M], bundle: Bundle, settings: Settings) -> M:
    """The model, after it has read a token, so that a memory_limit too low for it is told now."""
    model = kind(bundle, settings)
    options = model.provider.options
    if isinstance(options, CPU) and options.memory_limit is not None:  # others pack weights within their limit
        model.runner.read_one()
    return model


def reopen(kind: type[M], path: str, settings: Settings) -> M:
    return open_as(kind, open_folder(path, file=settings.file), settings)


def texts_of(texts: Any) -> tuple[list[Text], bool]:
    """A text, a pair or a list of them -> the list, and whether it was a single one."""
    if isinstance(texts, str | tuple):
        return [texts], True
    if isinstance(texts, list):
        return texts, False
    raise InputError(f"expected a text or a list of texts, got {type(texts).__name__}")
