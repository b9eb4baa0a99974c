"""token-classification: a text in, its entities out, each with the characters where it stands."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from torchless.arguments import check_count, check_name
from torchless.batching import BATCH_SIZE
from torchless.bundle import Bundle
from torchless.classifier import check_columns
from torchless.encoder import Encoder
from torchless.errors import BundleError, InputError
from torchless.manifest import EXPORT_AGAIN
from torchless.model import Fit, Model, texts_of
from torchless.providers.first import Settings
from torchless.sampling import check_numbers, softmax
from torchless.spans import trim
from torchless.tasks.entities import STRATEGIES, Span, Token, content, group_name, spans, tokens_of
from torchless.text import check_length, check_text
from torchless.windows import run_windows, seams, stitch

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Entity:
    """A label, its score, and the word text[start:end] that bears it.

    index: the token's place in the encoding, special tokens counted, with aggregation_strategy="none".
    """

    label: str
    score: float
    word: str
    start: int
    end: int
    index: int | None = None


@dataclass(frozen=True)
class Reading:
    """A text on its way through the model: its tokens, and the windows that hold them with the range of each."""

    text: str
    tokens: list[Token]
    windows: list[Encoding]
    ranges: list[range]


class TokenClassification(Model):
    """Call it with a text, or a list of texts."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(bundle, settings)
        if not bundle.manifest.labels:
            raise BundleError(f"{bundle.path}: the manifest names no labels: {EXPORT_AGAIN}")
        self.labels = bundle.manifest.labels
        self._runner = Encoder(self.session, bundle, "logits")

    @overload
    def __call__(
        self,
        texts: str,
        *,
        aggregation_strategy: str = ...,
        ignore_labels: Sequence[str] = ...,
        stride: int | None = ...,
        batch_size: int = ...,
        cancel: threading.Event | None = ...,
        progress: Callable[[int, int], object] | None = ...,
        truncation: bool | str = ...,
        max_length: int | None = ...,
        truncation_side: str = ...,
    ) -> list[Entity]: ...
    @overload
    def __call__(
        self,
        texts: list[str],
        *,
        aggregation_strategy: str = ...,
        ignore_labels: Sequence[str] = ...,
        stride: int | None = ...,
        batch_size: int = ...,
        cancel: threading.Event | None = ...,
        progress: Callable[[int, int], object] | None = ...,
        truncation: bool | str = ...,
        max_length: int | None = ...,
        truncation_side: str = ...,
    ) -> list[list[Entity]]: ...

    def __call__(
        self,
        texts: Any,
        *,
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] = ("O",),
        stride: int | None = None,
        batch_size: int = BATCH_SIZE,
        cancel: threading.Event | None = None,
        progress: Callable[[int, int], object] | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        truncation_side: str = "right",
    ) -> list[Entity] | list[list[Entity]]:
        """The entities of a text in order, or a list of such lists; an empty text has none.

        aggregation_strategy: "none" gives every token; "simple" joins tokens of one label by their B- and I-
        prefixes; "first", "average" and "max" first give all tokens of a word one label: that of its first
        token, of the mean of their scores, of the surest one. ignore_labels: not reported (with "none" whole
        labels such as "B-PER", else those of entities such as "PER"). stride: read a text past max_length in
        windows of that many tokens, which share this many. truncation, max_length, truncation_side: as in
        torchless.model.Fit.

        As in transformers, with these differences. `word` is always text[start:end], with no white space around it
        and no accent cut off, and a token that stands for no character is no entity. With WordPiece, tokens of one
        word are those that its "##" joins; transformers compares lengths, and takes letters whose accent is a
        character of its own for a part of the word before. Where windows overlap, transformers keeps the longest of
        entities that touch, so that it loses part of one longer than the overlap, and a word at an edge may come
        out in halves. Here each token is judged once, by the window that shows the most text on both sides of it,
        with no entity cut in two; where several windows agree on an entity, its score is the best of theirs, as in
        transformers.

        Raises InputError for wrong arguments, ContextLengthError for a text that is too long without stride or
        truncation, GenerationError for logits that are not numbers.
        """
        check_name("aggregation_strategy", aggregation_strategy, STRATEGIES)
        ignored = self._ignored(ignore_labels)
        fit = Fit(truncation, max_length, truncation_side)
        if stride is not None:
            stride = check_count("stride", stride, least=0)
            if truncation:
                raise InputError("stride reads all of a long text, truncation cuts it: give one of them")
        given, single = texts_of(texts)
        encoder: Encoder = self.runner
        batching = self.batching(batch_size, cancel, progress)

        def answer(part: Sequence[Any]) -> list[list[Entity]]:
            readings = [self._read(text, fit, stride) for text in batching.each(part)]
            outputs = run_windows(encoder, [reading.windows for reading in readings], batching)
            return [
                self._entities(reading, logits, aggregation_strategy, ignored)
                for reading, logits in zip(readings, outputs, strict=True)
            ]

        results = batching.answers(given, answer)
        return results[0] if single else results

    def _ignored(self, ignore_labels: Sequence[str]) -> frozenset[str]:
        known = {*self.labels, *map(group_name, self.labels), "O"}
        if isinstance(ignore_labels, str) or not isinstance(ignore_labels, Sequence | set | frozenset):
            raise InputError(f"ignore_labels={ignore_labels!r}: give a list of labels")
        for label in ignore_labels:
            if not isinstance(label, str) or label not in known:
                raise InputError(f"ignore_labels: {label!r} is no label (there are: {', '.join(self.labels)})")
        return frozenset(ignore_labels)

    def _read(self, text: Any, fit: Fit, stride: int | None) -> Reading:
        if isinstance(text, tuple):
            raise InputError("token-classification reads one text, not a pair: give several texts as a list")
        limit = fit.limit(self.context_length)
        encoding = self.encode(text, fit) if fit.truncation else self.tokenizer.encode(check_text(text))
        model = self.tokenizer.fast.model
        tokens = tokens_of(
            text, encoding,
            word_aware=bool(getattr(model, "continuing_subword_prefix", None)),
            unknown=self.bundle.manifest.special_tokens.get("unk"),
        )  # fmt: skip
        if not tokens:
            return Reading(text, [], [], [])
        if stride is None:
            advice = "pass stride= to read it in windows, or truncation=True to cut it"
            check_length(len(encoding.ids), limit, advice=advice)
        room = limit - self.tokenizer.fast.num_special_tokens_to_add(False)
        if stride is not None and stride >= room:
            raise InputError(f"stride={stride}: a window has {room} tokens of the text, and shares fewer of them")
        if len(encoding.ids) <= limit:
            return Reading(text, tokens, [encoding], [range(len(tokens))])
        windows = self.tokenizer.windows(text, limit, stride=stride or 0)
        starts = range(0, len(windows) * (room - (stride or 0)), room - (stride or 0))
        return Reading(text, tokens, windows, [range(s, min(s + room, len(tokens))) for s in starts])

    def _entities(
        self, reading: Reading, logits: list[Float], strategy: str, ignored: Container[str]
    ) -> list[Entity]:
        if not reading.windows:
            return []
        rows = [self._scores(window, one) for window, one in zip(reading.windows, logits, strict=True)]
        found: list[Span]
        if len(rows) == 1:
            found = spans(rows[0], reading.tokens, self.labels, strategy)
        else:
            found = self._across(reading, rows, strategy, ignored)
        entities = []
        for span in found:
            if span.label not in ignored:
                first, last = reading.tokens[span.first], reading.tokens[span.last]
                if first.start == last.end:  # as byte-level tokenizers have it for two spaces in a row
                    continue
                start, end = trim(reading.text, first.start, last.end)
                index = first.index if strategy == "none" else None
                entities.append(Entity(span.label, span.score, reading.text[start:end], start, end, index))
        return entities

    def _scores(self, window: Encoding, logits: Float) -> Float:
        """The probabilities [N,L] of the window's N tokens that are not special."""
        check_columns(logits, len(self.labels))
        check_numbers(logits)
        return softmax(logits[content(window)])

    def _across(self, reading: Reading, rows: list[Float], strategy: str, ignored: Container[str]) -> list[Span]:
        """The spans of a text in several windows, each token judged by one of them."""
        tokens, ranges = reading.tokens, reading.ranges
        joined: list[set[int]] = []
        best: dict[tuple[str, int, int], float] = {}
        for window, row in zip(ranges, rows, strict=True):
            joined.append({i for i in window if tokens[i].continues})  # a word is not cut either
            for span in spans(row, tokens[window.start : window.stop], self.labels, strategy):
                first, last = window.start + span.first, window.start + span.last
                best[span.label, first, last] = max(span.score, best.get((span.label, first, last), 0.0))
                if span.label not in ignored:
                    joined[-1].update(range(first + 1, last + 1))
        whole = spans(stitch(ranges, seams(ranges, joined), rows), tokens, self.labels, strategy)
        if strategy == "none":
            return whole
        return [
            Span(span.label, best.get((span.label, span.first, span.last), span.score), span.first, span.last)
            for span in whole
        ]
