"""The tokenizer and the chat template in a GGUF file, as a tokenizer.json and a template of their own.

A file names the way a text is split before its merges (`tokenizer.ggml.pre`) and keeps no expression for it: those
that are known here are the ones that llama.cpp and the checkpoint's own tokenizer.json have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from torchless.errors import ExportError

MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
MERGES, SCORES = "tokenizer.ggml.merges", "tokenizer.ggml.scores"
TEMPLATE = "tokenizer.chat_template"
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # Hugging Face's words, and GGUF's
ENDS = ("eos", "eot", "eom")  # of a text, of a turn, of a message to a tool
NORMAL, UNKNOWN, CONTROL, OWN, UNUSED = 1, 2, 3, 4, 5  # token types; 6 is a byte

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Split:
    """How a text is split before its merges, and what else goes with the name."""

    pattern: str = ""  # "" is GPT-2's
    digits: bool = False  # one by one, before the rest
    whole: bool = False  # a piece that is a token as it stands is not merged
    bos: bool = False  # before every text, unless the file says otherwise
    composed: bool = False  # Unicode's NFC first, as the checkpoint's own tokenizer has it


SPLITS: dict[str, Split] = {
    "gpt-2": Split(),
    "smollm": Split(digits=True),
    "starcoder": Split(digits=True),
    "refact": Split(digits=True),
    "codeshell": Split(digits=True),
    "llama-bpe": Split(LLAMA3, whole=True, bos=True),
    "llama3": Split(LLAMA3, whole=True, bos=True),
    "llama-v3": Split(LLAMA3, whole=True, bos=True),
    "qwen2": Split(QWEN2, composed=True),
    "deepseek-r1-qwen": Split(QWEN2, composed=True),
}


class Words:
    """The vocabulary in a file's metadata, checked."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self.metadata = metadata
        self.where = where
        self.tokens: list[str] = self.texts(TOKENS)
        types = metadata.get(TYPES)
        self.types: list[int] = [NORMAL] * len(self.tokens) if types is None else _numbers(types, "iu")
        if not self.tokens or len(self.types) != len(self.tokens):
            raise self.broken(f"{len(self.types)} types for {len(self.tokens)} tokens")
        self.ids: dict[str, int] = {}
        for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind == UNUSED:  # rows of the embedding that no text leads to
                continue
            if self.ids.setdefault(token, index) != index:
                raise self.broken(f"the token {token!r} twice")

    def texts(self, key: str) -> list[str]:
        found = self.metadata.get(key)
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise ExportError(f"{self.where} has no list {key}: pass tokenizer= (--tokenizer)")
        return found

    def special(self, role: str) -> int | None:
        """The id of the token with this role, where the file gives one."""
        key = f"tokenizer.ggml.{ROLES.get(role, role)}_token_id"
        given = self.metadata.get(key)
        if given is None or given == 0xFFFFFFFF:  # -1: none
            return None
        if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < len(self.tokens):
            raise self.broken(f"{key}={given!r}, which is none of its {len(self.tokens):,} tokens")
        return given

    def flag(self, name: str, usual: bool) -> bool:
        given = self.metadata.get(f"tokenizer.ggml.{name}", usual)
        if not isinstance(given, bool):
            raise self.broken(f"{name}={given!r}")
        return given

    def broken(self, how: str) -> ExportError:
        return ExportError(
            f"{self.where}: its tokenizer has {how}: pass tokenizer= (--tokenizer), or mend the file"
        )


def _numbers(given: object, kinds: str) -> list[Any]:
    """The numbers of an array of these kinds, none of anything else."""
    return list(given.tolist()) if isinstance(given, np.ndarray) and given.dtype.kind in kinds else []


def tokenizer_of(metadata: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer; an ExportError for one that cannot be made exactly."""
    model = metadata.get(MODEL)
    if not isinstance(model, str) or model not in MODELS:
        raise ExportError(
            f"{where}: {MODEL}={model!r} is not supported (supported: {', '.join(MODELS)}): pass tokenizer= "
            "(--tokenizer)"
        )
    words = Words(metadata, where)
    try:
        tokenizer = MODELS[model](words)
        for index, (token, kind) in enumerate(zip(words.tokens, words.types, strict=True)):
            if kind in (UNKNOWN, CONTROL):
                tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
            elif kind == OWN:
                tokenizer.add_tokens([AddedToken(token, normalized=False)])
            if kind in (UNKNOWN, CONTROL, OWN) and tokenizer.token_to_id(token) != index:
                raise words.broken(f"the token {token!r}, which would not keep its id {index}")
    except ExportError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise words.broken(f"words that make none ({error})") from None
    return tokenizer


def special_ids(metadata: Mapping[str, Any], where: str) -> dict[str, int | list[int]]:
    """bos_token_id and so on; several ends of a text where the file has them, for generation_config.json."""
    words = Words(metadata, where)
    found: dict[str, int | list[int]] = {
        f"{role}_token_id": index for role in ("bos", "pad") if (index := words.special(role)) is not None
    }
    ends = list(dict.fromkeys(index for role in ENDS if (index := words.special(role)) is not None))
    if ends:
        found["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return found


def special_tokens(metadata: Mapping[str, Any], where: str) -> dict[str, str]:
    """bos_token and so on, as tokenizer_config.json has them."""
    words = Words(metadata, where)
    return {f"{role}_token": words.tokens[i] for role in ROLES if (i := words.special(role)) is not None}


def _byte_level(words: Words) -> Tokenizer:
    """Byte-level BPE by a list of merges."""
    name = words.metadata.get(PRE)
    split = SPLITS.get(str(name))
    if split is None:
        raise ExportError(
            f"{words.where}: {PRE}={name!r}, whose way to split texts is not known here (known: "
            f"{', '.join(SPLITS)}): pass tokenizer= (--tokenizer) with the checkpoint's tokenizer.json"
        )
    merges = [_halves(words, merge) for merge in words.texts(MERGES)]
    tokenizer = Tokenizer(models.BPE(words.ids, merges, ignore_merges=split.whole))
    if split.composed:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split.pattern)]
    if split.pattern:
        steps.insert(0, pre_tokenizers.Split(Regex(split.pattern), "isolated"))
    if split.digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    _surround(tokenizer, words, bos=split.bos)
    return tokenizer


def _halves(words: Words, merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right or " " in right:
        raise words.broken(f"{merge[:40]!r} among its merges, which is not two tokens")
    return left, right


def _sentencepiece(words: Words) -> Tokenizer:
    """SentencePiece's BPE, which merges to the piece of the highest score; bytes where no piece is."""
    scores = _numbers(words.metadata.get(SCORES), "f")
    if len(scores) != len(words.tokens) or not all(map(math.isfinite, scores)):
        raise words.broken("no score for each token")
    if words.flag("remove_extra_whitespaces", False) or "tokenizer.ggml.precompiled_charsmap" in words.metadata:
        raise words.broken("a normalization, which is not supported")
    lacking = [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in words.ids]
    if lacking:
        raise words.broken(f"no token {lacking[0]}")
    unknown = words.special("unk")
    space = words.flag("add_space_prefix", True)
    tokenizer = Tokenizer(
        models.BPE(
            words.ids, _merges_by_score(words, scores), fuse_unk=True, byte_fallback=True,
            unk_token=None if unknown is None else words.tokens[unknown],
        )
    )  # fmt: skip
    spaced: list[Any] = [normalizers.Prepend("▁")] if space else []
    tokenizer.normalizer = normalizers.Sequence([*spaced, normalizers.Replace(" ", "▁")])
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if space else []))
    _surround(tokenizer, words, bos=True)
    return tokenizer


def _merges_by_score(words: Words, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, the highest score of it first.

    Of two pieces with one score SentencePiece takes the one further left, which no order of merges says: refused.
    """
    pieces = {token: i for token, i in words.ids.items() if words.types[i] in (NORMAL, OWN)}
    made: list[tuple[float, int, int, str, str]] = []
    ranked: dict[float, str] = {}
    for piece, index in pieces.items():
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = [pair for pair in pairs if pair[0] in pieces and pair[1] in pieces]
        score = float(scores[index])
        if pairs and ranked.setdefault(score, piece) != piece:
            raise words.broken(f"one score for {ranked[score]!r} and {piece!r}, which no order of merges says")
        made += [(-score, pieces[left], pieces[right], left, right) for left, right in pairs]
    return [(left, right) for *_, left, right in sorted(made)]


def _surround(tokenizer: Tokenizer, words: Words, *, bos: bool) -> None:
    """What stands before and after every text."""
    first = words.special("bos") if words.flag("add_bos_token", bos) else None
    last = words.special("eos") if words.flag("add_eos_token", False) else None
    before, after = ([] if index is None else [words.tokens[index]] for index in (first, last))
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{t}:1" for t in after)],
            special_tokens=[(words.tokens[i], i) for i in dict.fromkeys((first, last)) if i is not None],
        )


MODELS: dict[str, Callable[[Words], Tokenizer]] = {"gpt2": _byte_level, "llama": _sentencepiece}
