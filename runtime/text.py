"""Text to token ids and back, whole or piece by piece as it is generated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

from torchless.errors import ContextLengthError, InputError, TokenizerError
from torchless.memory import give_back_freed

TOKENIZER = "tokenizer.json"
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what an unfinished UTF-8 sequence decodes to

Text = str | tuple[str, str]
Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Tokenizer:
    """tokenizer.json, exactly as trained; cutting and padding that it may ask for are left to the caller."""

    fast: FastTokenizer
    path: Path
    _cutters: dict[tuple[int, int, str, str], FastTokenizer] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Tokenizer:
        try:
            fast = FastTokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TokenizerError(
                f"{path} is missing: export the checkpoint again with its tokenizer.json"
            ) from None
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"{path} is not a tokenizer of the tokenizers library ({error})") from None
        fast.no_truncation()
        fast.no_padding()
        give_back_freed()  # parsing took twice what the tokenizer takes
        return cls(fast, Path(path))

    @property
    def joins_pairs(self) -> bool:
        """Whether its template says how two texts stand together; without one, nothing would part them."""
        return bool(self.fast.num_special_tokens_to_add(True))

    def encode(self, text: Text, *, special_tokens: bool = True) -> Encoding:
        """A text, or a pair of texts, with the special tokens of the tokenizer's template.

        Raises InputError for anything else, for text with lone surrogates, and for a pair without a template.
        """
        first, second = check_pair(text) if isinstance(text, tuple) else (check_text(text), None)
        if second is not None and not self.joins_pairs:
            raise InputError(
                "the tokenizer's template has no form for a pair of texts: give one text, or export again with a "
                "tokenizer that has one"
            )
        try:
            return self.fast.encode(first, second, add_special_tokens=special_tokens)
        except Exception as error:
            unknown = next((character for character in first + (second or "") if not self.knows(character)), None)
            found = f"it has no token for {unknown!r}" if unknown else str(error)
            raise TokenizerError(f"{self.path} cannot encode this text: {found}") from None

    def knows(self, text: str) -> bool:
        """Whether there are tokens for it: a vocabulary of characters has none for those it was not made of."""
        try:
            self.fast.encode(text, add_special_tokens=False)
        except Exception:
            return False
        return True

    def windows(
        self, text: Text, limit: int, *, stride: int = 0, strategy: str = "longest_first", side: str = "right"
    ) -> list[Encoding]:
        """The same in pieces of at most `limit` tokens, special ones kept in each; the first is the text cut.

        stride: tokens that neighbours share. strategy: longest_first, only_first or only_second, the text of a
        pair that is cut. side: where it is cut, "right" (its end) or "left".
        """
        cutter = self._cutter(limit, stride, strategy, side)
        first = Tokenizer(cutter, self.path).encode(text)
        if len(first.ids) > limit:  # the library then leaves the text whole
            raise TokenizerError(f"{self.path} cannot cut to {limit} tokens: the special ones alone are more")
        return [first, *first.overflowing]

    def _cutter(self, limit: int, stride: int, strategy: str, side: str) -> FastTokenizer:
        key = (limit, stride, strategy, side)
        cutter = self._cutters.get(key)
        if cutter is None:
            cutter = FastTokenizer.from_str(self.fast.to_str())  # a copy: the setting is its own, threads share it
            try:
                cutter.enable_truncation(limit, stride=stride, strategy=strategy, direction=side)
            except Exception as error:
                raise TokenizerError(f"{self.path} cannot cut to {limit} tokens ({error})") from None
            self._cutters[key] = cutter
        return cutter

    def ids(self, text: str, *, special_tokens: bool = True) -> list[int]:
        return list(self.encode(text, special_tokens=special_tokens).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        try:
            return self.fast.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except OverflowError:
            raise InputError("token ids are whole numbers of 0 or more") from None

    def token(self, token_id: int) -> str:
        """The token as text: a piece of a word keeps its leading space, where its tokenizer has one."""
        text = self.decode([token_id], skip_special_tokens=False)
        return text if text else (self.fast.id_to_token(token_id) or "")


class IncrementalDecoder:
    """Token ids in, text out, never half a character; the pieces joined equal the ids decoded at once.

    A token's text can depend on those before it (leading spaces, split UTF-8 sequences), so each piece is the
    difference of two decodings that begin at the same earlier token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # where both decodings begin
        self._shown = 0  # ids whose text has been given out

    def push(self, token_id: int) -> str:
        """The text that has become certain with this token, often "" within a character."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids[self._start :])
        if text.endswith(INCOMPLETE):
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """What is left at the end, an unfinished character as U+FFFD."""
        return self._emit(self._tokenizer.decode(self._ids[self._start :]))

    def _emit(self, text: str) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        if len(text) > len(before):  # else a special token that is not shown: no text to begin the next one with
            self._start, self._shown = self._shown, len(self._ids)
        return text[len(before) :]


def check_text(text: object, name: str = "") -> str:
    """The text itself, or InputError: None, bytes and numbers are mistakes, lone surrogates cannot be encoded.

    name: of the argument, where there are several.
    """
    if not isinstance(text, str):
        raise InputError(f"{name and f'{name}: '}expected text, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name or 'the text'} holds a lone surrogate at character {error.start}: decode the bytes that it "
            "came from with errors='replace'"
        ) from None
    return text


def check_pair(pair: tuple[object, ...]) -> tuple[str, str]:
    if len(pair) != 2:
        raise InputError(f"expected a pair of texts, got a tuple of {len(pair)}: give several texts as a list")
    return check_text(pair[0]), check_text(pair[1])


def check_length(length: int, limit: int, *, advice: str) -> None:
    if length > limit:
        raise ContextLengthError(f"the text has {length:,} tokens, the model takes {limit:,}: {advice}")


def tokenizer_of(path: Path, present: bool, *, takes_ids: bool) -> Tokenizer:
    """The bundle's tokenizer, or a TokenizerError that says how a bundle gets one, or how to do without."""
    if not present:
        without = "pass token ids, or " if takes_ids else ""
        raise TokenizerError(
            f"{path.parent} was exported without a tokenizer: {without}export again with tokenizer="
        )
    return Tokenizer.read(path)


def prompts_of(prompt: Any) -> tuple[list[Prompt], bool]:
    """A prompt or a list of prompts -> the list, and whether it was a single one."""
    if isinstance(prompt, str):
        return [prompt], True
    if isinstance(prompt, np.ndarray):
        prompt = prompt.tolist()
    if isinstance(prompt, list | tuple):
        if prompt and all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in prompt):
            return [list(prompt)], True
        if all(isinstance(item, str | list | tuple) for item in prompt):
            return list(prompt), False
    raise InputError(
        f"expected a prompt (text or a list of token ids) or a list of prompts, got {type(prompt).__name__}"
    )
