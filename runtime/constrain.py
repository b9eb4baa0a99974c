"""Output of a given form: one of some choices, a text that a regular expression describes, or JSON of a schema.

llguidance (the extra `constrain`) says which tokens may come next, byte by byte; docs/constrain.md has why it does.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.errors import InputError, TokenizerError
from torchless.generation_config import GenerationConfig
from torchless.text import Tokenizer, check_text

Float = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Allowed = npt.NDArray[np.bool_]  # [V]: which tokens can follow

UNWRITABLE = "no text of the model's tokens can have this form"
KEPT = 8  # constraints of a model: what one has found out about its texts makes the next text faster
# JSON in the form of json.dumps: with free space between its parts, a small model can go on with spaces for ever.
FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ASCII = "dws"  # \d, \w and \s as with Python's re.ASCII: libraries know different versions of Unicode
TEXTUAL = {*range(0xC0), *range(0xC2, 0xF5)}  # the bytes that UTF-8 is made of
CHARACTERS = [chr(i) for i in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))]
REST = [byte for byte in range(256) if chr(byte) not in CHARACTERS]
# Byte-level BPE writes each byte as a character that can be seen (Radford et al., 2019).
BYTES = {c: ord(c) for c in CHARACTERS} | {chr(256 + place): byte for place, byte in enumerate(REST)}


class Constraint:
    """What may be added to one text, a token at a time: a filter of logits that remembers where the text is.

    It goes back where the text differs from what it has seen, so guesses can be taken back. name: for its errors.
    size: of the logits. ends: tokens that end a text, allowed where it is complete.
    """

    def __init__(self, name: str, matcher: Any, size: int, ends: Sequence[int]) -> None:
        self.ends = sorted(set(ends))
        self._name, self._matcher, self._size = name, matcher, size
        self._added: Ids = np.zeros(0, np.int64)
        self._may: Allowed | None = None  # after self._added

    def fork(self) -> Constraint:
        """The same for another text that begins as this one does."""
        other = Constraint(self._name, self._matcher.deep_copy(), self._size, self.ends)
        other._added, other._may = self._added, self._may
        return other

    def __call__(self, logits: Float, ids: Ids, added: int) -> Float:
        """[V] -> [V]: -inf for what cannot follow. Raises InputError where nothing can."""
        self._follow(ids[len(ids) - added :])
        may = self._allowed()
        if not may.any():
            accepting = self._matcher.is_accepting()
            raise self._error("the text is complete, and the model has no end token" if accepting else UNWRITABLE)
        return np.where(may, logits, np.float32(-np.inf))

    def complete(self, added: Ids) -> bool:
        """Whether the text, of which these ids [T] were added, has the form and cannot go on."""
        self._follow(added)
        return bool(self._matcher.is_accepting()) and (self._matcher.is_stopped() or not self.goes_on())

    def goes_on(self) -> bool:
        """Whether any token but the end can follow."""
        may = self._allowed()
        return bool(np.count_nonzero(may) > np.count_nonzero(may[self.ends]))

    def _follow(self, added: Ids) -> None:
        """Bring the matcher to where the text is. Raises InputError for a text that the constraint forbids."""
        shared = min(len(added), len(self._added))
        differs = np.flatnonzero(added[:shared] != self._added[:shared])
        same = int(differs[0]) if len(differs) else shared
        back, new = len(self._added) - same, added[same:].tolist()
        if not back and not new:
            return
        self._may = None
        if back:
            self._matcher.rollback(back)
        self._added = added[:same].copy()
        if self._matcher.validate_tokens(new) < len(new):
            raise self._error("the text so far is not one that the constraint allows")
        self._matcher.consume_tokens(new)
        self._check()
        self._added = added.copy()

    def _allowed(self) -> Allowed:
        if self._may is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._check()
            self._may = np.unpackbits(bits, count=self._size, bitorder="little").view(np.bool_)
            self._may[self.ends] = self._matcher.is_accepting()
        return self._may

    def _check(self) -> None:
        """InputError where no byte can follow, or where the library's limits stop a constraint that explodes."""
        if self._matcher.is_error():
            reason = _reason(self._matcher)
            raise self._error(UNWRITABLE if "NoExtension" in reason else f"the constraint is too complex: {reason}")

    def _error(self, reason: str) -> InputError:
        return InputError(f"{self._name} cannot be used: {reason}")


class Vocabulary:
    """What every token of a model writes, in bytes, as llguidance takes it: made once a model.

    size: of the model's logits, which may have more columns than the tokenizer has tokens. Raises InputError for
    a tokenizer whose text is not that of its tokens side by side, such as GPT-1's.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.size = size
        self._tokenizer = tokenizer
        self.written = bytes_of(tokenizer, size)
        self._alphabet: list[str] | None = None  # the characters that can be written, where not all can
        if TEXTUAL - {one[0] for one in self.written if len(one) == 1}:
            # Half a character may then have no other half: only whole ones, each of which is a token.
            texts = [_text(one) for one in self.written]
            self.written = [text.encode() for text in texts]
            self._alphabet = sorted({text for text in texts if len(text) == 1})
        self._ids = {written: token for token, written in enumerate(self.written) if written}
        self._longest = max(map(len, self._ids), default=0)
        self._compiled = functools.lru_cache(KEPT)(self._compile)
        self._library = load_library()
        self._tokens = self._library.LLTokenizer(self._library.TokenizerWrapper(_Wrapped(self)))

    def constraint(self, config: GenerationConfig) -> Constraint:
        """That of config.choices, config.regex or config.json_schema. Raises InputError for one that is none."""
        (name,) = config.constraints
        return self._compiled(name, getattr(config, name), config.eos_token_id).fork()

    def _compile(self, name: str, asked: Any, eos: tuple[int, ...]) -> Constraint:
        grammar = getattr(self, f"_{name}")(asked)
        name = f"regex={asked!r}" if name == "regex" else name
        matcher = self._library.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"{name} cannot be used: {_reason(matcher)}")
        ends = [token for token in eos if not self.written[token]]  # one with text would spoil it
        constraint = Constraint(name, matcher, self.size, ends)
        if constraint.goes_on():
            return constraint
        raise InputError(
            f"{name} allows no text but the empty one: there is nothing to generate"
            if matcher.is_accepting()
            else f"{name} cannot be used: {UNWRITABLE}"
        )

    def _json_schema(self, schema: str) -> str:
        try:
            if not isinstance(json.loads(schema), dict):
                raise ValueError("it is no object")
            return str(self._library.LLMatcher.grammar_from_json_schema(schema, defaults=FORM))
        except (ValueError, RecursionError) as error:
            raise InputError(f"json_schema cannot be used: {error}") from None

    def _regex(self, regex: str) -> str:
        own = f"/{self._library.regex_to_lark(check_text(regex), ASCII)}/"
        if self._alphabet is None:
            return self._grammar(own)
        return self._grammar(f"{own} & /[{_literal(self._alphabet)}]*/")

    def _choices(self, choices: tuple[str, ...]) -> str:
        for choice in choices:
            if unknown := self._unwritable(check_text(choice)):
                raise InputError(f"choices: the model's vocabulary has no {unknown!r} for {choice!r}")
        return self._grammar(f"/{'|'.join(map(_literal, choices))}/")

    def _grammar(self, terminal: str) -> str:
        return str(self._library.LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {terminal}"))

    def _unwritable(self, text: str) -> str:
        """The first character that no token writes."""
        return next((one for one in text if self._alphabet is not None and one not in self._alphabet), "")

    def encode(self, text: str | bytes) -> list[int]:
        """Ids that write exactly this, those of the tokenizer if they do; fewer where there are no such tokens.

        llguidance asks for them where a constraint leaves one text only.
        """
        content = text if isinstance(text, bytes) else text.encode()
        try:
            ids = self._tokenizer.ids(content.decode(), special_tokens=False)
            if b"".join(self.written[token] for token in ids) == content:
                return ids
        except (ValueError, IndexError, TokenizerError):  # half a character, or what the vocabulary lacks
            pass
        ids, place = [], 0
        while place < len(content):
            ends = range(min(len(content), place + self._longest), place, -1)
            end = next((end for end in ends if content[place:end] in self._ids), 0)
            if not end:
                break
            ids.append(self._ids[content[place:end]])
            place = end
        return ids


class _Wrapped:
    """The interface that llguidance wants of a tokenizer. Its end token is none of the model's."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.size
        self.tokens = [*vocabulary.written, b"\xff[end]"]
        self.special_token_ids = [token for token, written in enumerate(self.tokens) if not written]
        self._vocabulary = vocabulary

    def __call__(self, text: str | bytes) -> list[int]:
        return self._vocabulary.encode(text)


def load_library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise InputError(
            'choices, regex and json_schema need llguidance: pip install "torchless[constrain]"'
        ) from None
    return llguidance


def bytes_of(tokenizer: Tokenizer, size: int) -> list[bytes]:
    """What each of `size` tokens writes; b"" for special tokens, and for ids without one."""
    kind = (json.loads(tokenizer.fast.to_str()).get("decoder") or {}).get("type")
    if kind not in ("ByteLevel", "Fuse"):
        raise InputError(
            "choices, regex and json_schema need a tokenizer of bytes or characters, as GPT-2's and nanoGPT's: "
            f"{tokenizer.path} joins its tokens in another way ({kind})"
        )
    written = [b""] * size
    special = {token for token, added in tokenizer.fast.get_added_tokens_decoder().items() if added.special}
    for text, token in tokenizer.fast.get_vocab().items():
        if token < size and token not in special:
            whole = kind == "Fuse" or not set(text) <= BYTES.keys()
            written[token] = text.encode() if whole else bytes(BYTES[one] for one in text)
    return written


def _literal(characters: Iterable[str]) -> str:
    """Characters as a regular expression has them, each by its number."""
    return "".join(f"\\x{{{ord(one):x}}}" for one in characters)


def _text(written: bytes) -> str:
    """What a token writes, "" for half a character."""
    try:
        return written.decode()
    except UnicodeDecodeError:
        return ""


def _reason(matcher: Any) -> str:
    """The line of the library's message that says what is wrong."""
    lines = str(matcher.get_error()).splitlines() or ["it gives no reason"]
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
