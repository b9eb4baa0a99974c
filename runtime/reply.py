"""What is added to one prompt, as text: never half a character, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torchless.generation import Speculation, Token
from torchless.stopping import FinishReason, Patience, StopStrings
from torchless.text import IncrementalDecoder, Tokenizer


class Reply:
    """Takes the tokens of one row as they come; says when it has seen enough.

    tokenizer: None for a bundle without one, whose replies have ids and no text.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop_strings: tuple[str, ...], patience: Patience) -> None:
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.top: list[list[tuple[int, float]]] = []
        self.reason: FinishReason = "length"
        self.text = ""
        self._fresh = ""
        self._decoder = IncrementalDecoder(tokenizer) if tokenizer is not None else None
        self._stop = StopStrings(stop_strings)
        self._patience = patience

    def hear(self, token: Token | None) -> FinishReason | None:
        """The reason to end here, if there is one; None stands for a moment while a window is read."""
        if token is not None:
            self.ids.append(token.id)
            if token.logprob is not None:
                self.logprobs.append(token.logprob)
                self.top.append(token.top)
            self._read(token.id)
        own = token.finish_reason if token is not None else None
        earlier = None if self._stop.found else self._patience.ends(self.ids if token is not None else [])
        if earlier or own:  # no more tokens come: what is left may still hold a stop string
            self._read(None)
            self._add(self._stop.flush())
        if self._stop.found:
            earlier = self.reason = "stop_string"
        else:
            self.reason = "stop" if own == "stop" else earlier or own or self.reason
        return earlier

    def take(self) -> str:
        """The text that has come since the last time."""
        fresh, self._fresh = self._fresh, ""
        return fresh

    def _read(self, token_id: int | None) -> None:
        """The next token, or None for the end."""
        if self._decoder is not None:
            self._add(self._stop.push(self._decoder.flush() if token_id is None else self._decoder.push(token_id)))

    def _add(self, piece: str) -> None:
        self.text += piece
        self._fresh += piece


@dataclass(frozen=True)
class Generation:
    """What was added to one prompt (with return_full_text=True, the prompt and what was added).

    text is token_ids decoded at once, or what of it stands before a stop string. Wherever a text ends, also by a
    callback, a deadline or a cancellation, half a character at its end is U+FFFD, as transformers decodes it.
    finish_reason: "stop" (an end token), "length" (max_new_tokens, or the context), "stop_string", "callback",
    "deadline" or "cancelled". logprobs and top_logprobs, where asked for: the natural logarithm of each token's
    probability, and the likeliest tokens in its place, as (id, logprob). speculation: how guesses did, where tokens
    were guessed.
    """

    text: str
    token_ids: list[int] = field(repr=False)
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: list[float] | None = field(default=None, repr=False)
    top_logprobs: list[list[tuple[int, float]]] | None = field(default=None, repr=False)
    speculation: Speculation | None = field(default=None, repr=False, compare=False)


class Stream(Iterator[str]):
    """Pieces of text, as they become certain. Afterwards `result` holds the whole Generation."""

    def __init__(self, pieces: Iterator[str | Generation]) -> None:
        self._pieces = pieces
        self.result: Generation | None = None

    def __next__(self) -> str:
        for piece in self._pieces:
            if isinstance(piece, str):
                return piece
            self.result = piece
        raise StopIteration

    def close(self) -> None:
        """Stop generating; `result` stays None."""
        self._pieces.close()  # type: ignore[attr-defined]
