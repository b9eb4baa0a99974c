"""question-answering: a question and a context in, the words of the context that answer it out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from torchless.arguments import check_count, check_flag
from torchless.batching import BATCH_SIZE
from torchless.bundle import Bundle
from torchless.encoder import Encoder
from torchless.errors import InputError
from torchless.model import Model
from torchless.providers.first import Settings
from torchless.sampling import check_numbers, softmax
from torchless.spans import trim
from torchless.text import check_text
from torchless.windows import run_windows

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

# The defaults of transformers, in tokens.
MAX_SEQ_LEN = 384
DOC_STRIDE = 128
MAX_ANSWER_LEN = 15


@dataclass(frozen=True)
class Answer:
    """The answer context[start:end], and its score; "" at 0 where there is none."""

    answer: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Search:
    """What is looked for in the model's scores, named as in transformers; a wrong value is an InputError."""

    top_k: int
    max_answer_len: int
    handle_impossible_answer: bool
    align_to_words: bool

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        for name in ("handle_impossible_answer", "align_to_words"):
            check_flag(name, getattr(self, name))

    @property
    def candidates(self) -> int:
        """Spans taken from each window: more than answers, since several may turn out to be the same words."""
        return self.top_k * 2 + 10 if self.align_to_words else self.top_k


@dataclass(frozen=True)
class Room:
    """How a question and its context share the model's tokens, named as in transformers."""

    doc_stride: int | None
    max_seq_len: int | None
    max_question_len: int | None

    def __post_init__(self) -> None:
        for name, least in (("doc_stride", 0), ("max_seq_len", 1), ("max_question_len", 1)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_count(name, value, least))

    def limit(self, context_length: int) -> int:
        if self.max_seq_len is not None and self.max_seq_len > context_length:
            raise InputError(f"max_seq_len={self.max_seq_len:,}: the model takes {context_length:,} tokens")
        return self.max_seq_len or min(context_length, MAX_SEQ_LEN)

    def stride(self, limit: int, question: int) -> int:
        """Tokens that neighbouring windows share, where the question and special tokens take this many of each."""
        room = limit - question
        if room < 1:
            raise InputError(
                f"the question takes {question:,} of a window's {limit:,} tokens, special ones included, and "
                "leaves none for the context: shorten it, pass max_question_len= to cut it, or raise max_seq_len"
            )
        if self.doc_stride is None:
            usual = min(limit // 2, DOC_STRIDE)
            return usual if usual < room else room // 2
        if self.doc_stride >= room:
            raise InputError(
                f"doc_stride={self.doc_stride}: beside the question a window has {room} tokens of the context, and "
                "shares fewer of them: lower doc_stride, or shorten the question"
            )
        return self.doc_stride


class QuestionAnswering(Model):
    """Call it with a question and a context, or with lists of them."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(bundle, settings)
        self.cls_token_id = bundle.manifest.special_tokens.get("cls")
        self._runner = Encoder(self.session, bundle, "start_logits", "end_logits")

    def __call__(
        self,
        question: Any,
        context: Any = None,
        *,
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = MAX_ANSWER_LEN,
        max_seq_len: int | None = None,
        max_question_len: int | None = None,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
        batch_size: int = BATCH_SIZE,
        cancel: threading.Event | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Any:
        """The best Answer, or a list of the top_k best (fewer if there are no more), best first.

        Of lists, both or one of them (the other then goes with each), a list of these in order. A context past
        max_seq_len (by default 384, or what the model takes) is read in windows that share doc_stride tokens (by
        default 128, at most half a window). max_question_len cuts the question, by default it is never cut.
        max_answer_len: in tokens. handle_impossible_answer: "" may be an answer too. align_to_words: answers
        begin and end with a word, not within.

        As in the pipeline of transformers 4.57: the score is the product of the probabilities that the answer
        starts and ends there; an answer that stands in several places or windows is one, at the best place of
        the first window, with the sum of its scores (so it can pass 1). Other than there, an answer has no white
        space around it and no accent cut off, and of those that are then equal the best stays; spans that cannot
        be answers (outside the context, of nothing but white space, or their end before their start) never fill up
        the list, and a context without a word gives "" with the score 0, or an empty list with top_k above 1.

        Raises InputError for wrong arguments, an empty question or context, and a question that leaves no room
        for the context; GenerationError for logits that are not numbers.
        """
        search = Search(top_k, max_answer_len, handle_impossible_answer, align_to_words)
        room = Room(doc_stride, max_seq_len, max_question_len)
        pairs, single = pairs_of(question, context)
        encoder: Encoder = self.runner
        batching = self.batching(batch_size, cancel, progress)

        def answer(part: Sequence[tuple[str, str]]) -> list[Any]:
            windows = [self._windows(*pair, room) for pair in batching.each(part)]
            outputs = run_windows(encoder, windows, batching)
            found = [
                self._answers(pair[1], *read, search)
                for pair, read in zip(part, zip(windows, outputs), strict=True)
            ]
            return [answers if top_k > 1 else (answers or [Answer("", 0.0, 0, 0)])[0] for answers in found]

        results = batching.answers(pairs, answer)
        return results[0] if single else results

    def _windows(self, question: str, context: str, room: Room) -> list[Encoding]:
        limit = room.limit(self.context_length)
        asked = self.tokenizer.encode(question, special_tokens=False)
        if room.max_question_len is not None and len(asked.ids) > room.max_question_len:
            question = question[: asked.offsets[room.max_question_len - 1][1]]
            asked = self.tokenizer.encode(question, special_tokens=False)
        stride = room.stride(limit, len(asked.ids) + self.tokenizer.fast.num_special_tokens_to_add(True))
        pair = self.tokenizer.encode((question, context))
        if len(pair.ids) <= limit:
            return [pair]
        return self.tokenizer.windows((question, context), limit, stride=stride, strategy="only_second")

    def _answers(
        self, context: str, windows: Sequence[Encoding], outputs: Sequence[Float], search: Search
    ) -> list[Answer]:
        """The best answers over all windows, best first."""
        merged: dict[str, Answer] = {}
        impossible = np.inf
        for window, logits in zip(windows, outputs, strict=True):
            check_numbers(logits)
            inside = np.array([sequence == 1 for sequence in window.sequence_ids])
            seen = inside.copy()
            seen[0] |= window.ids[0] == self.cls_token_id  # many models point there for "no answer"
            start, end = probabilities(logits, seen).T
            impossible = min(impossible, float(start[0] * end[0]))
            words = set[str]()
            for number, (first, last, score) in enumerate(best_spans(start, end, inside, search.max_answer_len)):
                if number >= search.candidates and len(words) >= search.top_k:
                    break
                place = characters(window, first, last, search.align_to_words)
                text = context[slice(*place)]
                if text.strip():
                    before = merged.get(text.lower(), Answer(text, 0.0, *place))
                    merged[text.lower()] = replace(before, score=before.score + score)
                    words.add(context[slice(*trim(context, *place))].lower())
        answers = trimmed(context, merged.values())
        if search.handle_impossible_answer:
            answers.append(Answer("", impossible, 0, 0))
        return sorted(answers, key=lambda answer: -answer.score)[: search.top_k]


def trimmed(context: str, answers: Iterable[Answer]) -> list[Answer]:
    """The answers without white space around them; of those that are then the same words, only the best."""
    found: dict[str, Answer] = {}
    for one in sorted(answers, key=lambda answer: -answer.score):
        start, end = trim(context, one.start, one.end)
        found.setdefault(context[start:end].lower(), Answer(context[start:end], one.score, start, end))
    return list(found.values())


def probabilities(logits: Float, seen: Bool) -> Float:
    """[S,2] -> [S,2], over the tokens that are seen [S]; 0 for the others."""
    result: Float = softmax(np.where(seen, logits.T, np.float32(-10000))).T  # transformers' minus infinity
    return result


def best_spans(start: Float, end: Float, inside: Bool, longest: int) -> Iterator[tuple[int, int, float]]:
    """Yield first token, last token and score of all spans, best first; of equals the earlier.

    start, end: [S] probabilities. inside: [S], the tokens that an answer may begin or end with. longest: in
    tokens.
    """
    reach = min(longest, len(start))
    ends = np.lib.stride_tricks.sliding_window_view(np.append(end, np.zeros(reach - 1, end.dtype)), reach)
    may_end = np.lib.stride_tricks.sliding_window_view(np.append(inside, np.zeros(reach - 1, bool)), reach)
    scores = (start[:, None] * ends).ravel()  # [S,reach]: from a token to those after it
    possible = np.flatnonzero(inside[:, None] & may_end)
    for i in possible[np.argsort(-scores[possible], kind="stable")]:
        yield int(i // reach), int(i // reach + i % reach), float(scores[i])


def characters(window: Encoding, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
    """Where these tokens stand in the context; with align_to_words the words that they belong to, if known."""
    if align_to_words:
        words = window.word_ids[first], window.word_ids[last]
        places = [None if word is None else window.word_to_chars(word, 1) for word in words]
        if places[0] is not None and places[1] is not None:
            return places[0][0], places[1][1]
    return window.offsets[first][0], window.offsets[last][1]


def pairs_of(question: Any, context: Any) -> tuple[list[tuple[str, str]], bool]:
    """Texts or lists of them -> pairs, and whether it was a single one."""
    if isinstance(question, list) and isinstance(context, list):
        if len(question) != len(context):
            raise InputError(f"{len(question)} questions and {len(context)} contexts: give as many of each, or one")
        pairs = list(zip(question, context, strict=True))
    elif isinstance(question, list):
        pairs = [(one, context) for one in question]
    elif isinstance(context, list):
        pairs = [(question, one) for one in context]
    else:
        pairs = [(question, context)]
    for pair in pairs:
        for name, text in zip(("question", "context"), pair, strict=True):
            if not check_text(text, name):
                raise InputError(f"the {name} is empty: give a text")
    return pairs, not isinstance(question, list) and not isinstance(context, list)
