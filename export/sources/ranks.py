"""An Encoding of tiktoken as a tokenizer: byte-level BPE whose merges are recovered from the tokens' ranks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from torchless.errors import ExportError

# How GPT-2 splits a text before its merges, as it was published and as tiktoken has written it since.
SPLITS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
)


def is_tiktoken(given: object) -> bool:
    return all(hasattr(given, name) for name in ("_mergeable_ranks", "_pat_str", "_special_tokens"))


def tokenizer_of_ranks(encoding: Any) -> Tokenizer:
    """The tokenizer of GPT-2's encoding, or of one that splits as GPT-2 does; an ExportError for others."""
    if encoding._pat_str not in SPLITS:
        raise ExportError(
            f"tokenizer= is the encoding {encoding.name!r}, which splits text otherwise than GPT-2: give its "
            "tokenizer.json"
        )
    ranks: Mapping[bytes, int] = encoding._mergeable_ranks
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ExportError(f"tokenizer=: the encoding {encoding.name!r} has no token for the byte {missing[0]}")
    letters = letters_of_bytes()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [halves(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    vocabulary = {spell(token): rank for token, rank in ranks.items()} | encoding._special_tokens
    tokenizer = Tokenizer(models.BPE(vocabulary, [(spell(left), spell(right)) for left, right in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in encoding._special_tokens])
    return tokenizer


def letters_of_bytes() -> dict[int, str]:
    """GPT-2's spelling of bytes: a printable one is its own Latin-1 letter, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def halves(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that were merged into this one: merging its bytes by lower ranks alone leaves them."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[best] >= ranks[token]:
            raise ExportError(f"tokenizer=: the token {token!r} is not the merge of two others: no BPE has it")
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]
