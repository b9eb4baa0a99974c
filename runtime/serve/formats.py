"""Answers in the forms of OpenAI's API: whole, or chunk by chunk."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from torchless.constrain import bytes_of
from torchless.errors import InputError
from torchless.generation import Token
from torchless.serve.asking import Asked
from torchless.serve.engine import Piece
from torchless.stopping import FinishReason
from torchless.text import INCOMPLETE, Tokenizer

REASONS = {"length": "length", "deadline": "length"}  # all others are "stop"
LEAST = -9999.0  # what stands for a probability of 0


class Names:
    """How tokens are shown: as text, where half a character is U+FFFD, and as the bytes that they write."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        try:
            self._bytes: list[bytes] | None = bytes_of(tokenizer, size)
        except InputError:  # its tokens have no bytes of their own
            self._bytes = None

    def text(self, token: int) -> str:
        return self._tokenizer.token(token)

    def label(self, token: int) -> str:
        """The text, or the bytes of half a character as OpenAI writes them: "bytes:\\xc3"."""
        shown = self.text(token)
        if INCOMPLETE not in shown or self._bytes is None or not self._bytes[token]:
            return shown
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self._bytes[token])

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """A token of a chat's logprobs."""
        written = self._bytes[token] if self._bytes is not None else b""
        shown = self.text(token)
        told = list(written or shown.encode()) if self._bytes is not None else None
        return {"token": shown, "logprob": max(logprob, LEAST), "bytes": told}


class Writer:
    """Writes one request's answers. prompts: what each prompt's texts begin with, where they are to; else "".

    shown: tokens of an answer that write its text; the one that ends it is none.
    """

    prefix, whole, chunk = "", "", ""

    def __init__(self, model: str, asked: Asked, names: Names, ends: Sequence[int], prompts: Sequence[str]) -> None:
        self.asked, self.names, self.prompts = asked, names, prompts
        self._ends = frozenset(ends)
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def answer(self, pieces: Sequence[Piece], usage: dict[str, int]) -> dict[str, Any]:
        """All texts, in order; of those of a prompt the likeliest, where more were made than asked for."""
        chosen = []
        for start in range(0, len(pieces), self.asked.best_of):
            texts = list(pieces[start : start + self.asked.best_of])
            if len(texts) > self.asked.count:
                texts.sort(key=lambda piece: -mean(piece.tokens))
            chosen += texts[: self.asked.count]
        choices = [self.choice(piece, index) for index, piece in enumerate(chosen)]
        return {**self._head, "object": self.whole, "choices": choices, "usage": usage}

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """What a stream says of a piece."""
        return [self._chunk([choice]) for choice in self.deltas(piece)]

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last chunk of a stream that was asked for its usage."""
        return {**self._head, "object": self.chunk, "choices": [], "usage": usage}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        body = {**self._head, "object": self.chunk, "choices": choices}
        return body | ({"usage": None} if self.asked.usage else {})

    def shown(self, piece: Piece) -> list[Token]:
        return [token for token in piece.tokens if token.id not in self._ends]

    def choice(self, piece: Piece, index: int) -> dict[str, Any]:
        raise NotImplementedError

    def deltas(self, piece: Piece) -> list[dict[str, Any]]:
        raise NotImplementedError


class CompletionWriter(Writer):
    """text_completion."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._begun: dict[int, int] = {}  # how long a streamed text is so far, in characters

    def choice(self, piece: Piece, index: int) -> dict[str, Any]:
        prompt = self.prompts[index // self.asked.count]
        return self._entry(piece, index, prompt + piece.text, len(prompt))

    def deltas(self, piece: Piece) -> list[dict[str, Any]]:
        prompt = "" if piece.index in self._begun else self.prompts[piece.index // self.asked.count]
        offset = self._begun.get(piece.index, len(prompt))
        self._begun[piece.index] = offset + sum(len(self.names.text(token.id)) for token in self.shown(piece))
        return [self._entry(piece, piece.index, prompt + piece.text, offset)]

    def _entry(self, piece: Piece, index: int, text: str, offset: int) -> dict[str, Any]:
        logprobs = None if self.asked.top is None else self._logprobs(self.shown(piece), offset)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason(piece.finish_reason)}

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        """offset: of the first token, in characters of the text."""
        labels = [self.names.label(token.id) for token in tokens]
        lengths = [len(self.names.text(token.id)) for token in tokens]
        offsets = [offset + sum(lengths[:place]) for place in range(len(lengths))]
        logs = [max(token.logprob or 0.0, LEAST) for token in tokens]
        tops = []
        for token, label, log in zip(tokens, labels, logs, strict=True):  # the chosen one is always told
            tops.append({self.names.label(other): max(one, LEAST) for other, one in token.top} | {label: log})
        return {
            "tokens": labels,
            "token_logprobs": logs,
            "top_logprobs": tops if self.asked.top else None,
            "text_offset": offsets,
        }


class ChatWriter(Writer):
    """chat.completion, and chat.completion.chunk."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, *given: Any, trims: bool) -> None:
        """trims: answers begin with a space that parts them from a plain `Assistant:`, and is not shown."""
        super().__init__(*given)
        self._trims = trims
        self._spoken: dict[int, bool] = {}  # by text: whether anything of it was shown

    def choice(self, piece: Piece, index: int) -> dict[str, Any]:
        text = piece.text.lstrip() if self._trims else piece.text
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(piece),
            "finish_reason": reason(piece.finish_reason),
        }

    def deltas(self, piece: Piece) -> list[dict[str, Any]]:
        found = []
        if piece.index not in self._spoken:
            self._spoken[piece.index] = False
            found.append(self._delta(piece.index, {"role": "assistant", "content": "", "refusal": None}))
        text = piece.text
        if self._trims and not self._spoken[piece.index]:
            text = text.lstrip()
        logprobs = self._logprobs(piece)
        if text or (logprobs and logprobs["content"]):
            self._spoken[piece.index] |= bool(text)
            found.append(self._delta(piece.index, {"content": text}, logprobs))
        if piece.finish_reason:
            found.append(self._delta(piece.index, {}, None, reason(piece.finish_reason)))
        return found

    def _delta(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self.asked.top is None:
            return None
        content = []
        for token in self.shown(piece):
            top = [self.names.entry(*other) for other in token.top]
            content.append(self.names.entry(token.id, token.logprob or 0.0) | {"top_logprobs": top})
        return {"content": content, "refusal": None}


def reason(given: FinishReason | None) -> str | None:
    return None if given is None else REASONS.get(given, "stop")


def mean(tokens: Sequence[Token]) -> float:
    """Log-probability a token: by it the best of several texts is chosen."""
    return sum(token.logprob or 0.0 for token in tokens) / len(tokens) if tokens else -math.inf


def used(prompt: int, completion: int = 0) -> dict[str, int]:
    """usage, in tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
