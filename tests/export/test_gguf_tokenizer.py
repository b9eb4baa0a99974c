"""Tokenizers out of GGUF metadata: ids as those of the tokenizer.json that the file was made from."""

from __future__ import annotations

import random
from typing import Any

import gguf_files
import numpy as np
import pytest
import tiny
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from torchless.errors import ExportError
from torchless.export.sources.gguf_tokenizer import tokenizer_of

# As the checkpoints' own tokenizer.json have them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPLITS: dict[str, list[Any]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(QWEN2), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
TEXTS = [
    *tiny.SENTENCES, "", " ", "\n", "  two  spaces\n\n\tand a tab", "1234 5.67 x1y22 ½ ² Ⅷ ٣", "don't I'LL we'Ve",
    "😀👩‍👩‍👧 中文字符 日本語 кириллица العربية हिन्दी", "<|im_start|>user\nHi<|im_end|>\n", "\r\n \u00a0 \u3000x",
    "a <tool> b<tool>", "e\u0301 \u1e9b\u0323",
]  # fmt: skip


def texts() -> list[str]:
    generator = random.Random(0)
    letters = ["a", "B", " ", "\n", "é", "中", "😀", "1", "23", "½", "\t", "'s", "<", "the", "क", "\u200d", "  "]
    return TEXTS + ["".join(generator.choices(letters, k=generator.randrange(1, 40))) for _ in range(200)]


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level_ids_are_those_of_the_tokenizer_that_was_written(pre: str) -> None:
    original = Tokenizer(models.BPE())
    original.pre_tokenizer = pre_tokenizers.Sequence(SPLITS[pre])
    original.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    original.train_from_iterator(texts(), trainer)
    original.add_tokens([AddedToken("<tool>", normalized=False)])
    if pre == "qwen2":
        from tokenizers import normalizers

        original.normalizer = normalizers.NFC()
    made = tokenizer_of(gguf_files.vocabulary(original, pre) | {"tokenizer.ggml.add_bos_token": False}, "file")
    for text in texts():
        assert made.encode(text).ids == original.encode(text).ids, text
        assert made.decode(made.encode(text).ids, skip_special_tokens=False) == original.decode(
            original.encode(text).ids, skip_special_tokens=False
        )


@pytest.mark.parametrize(
    ("pre", "flags", "surrounded"),
    [
        ("gpt-2", {}, (False, False)),
        ("llama-bpe", {}, (True, False)),
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, (False, False)),
        ("smollm", {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, (True, True)),
    ],
)
def test_what_stands_around_a_text_is_as_the_file_says(
    pre: str, flags: dict[str, Any], surrounded: tuple[bool, bool]
) -> None:
    words = gguf_files.vocabulary(tiny.bpe(), pre) | {"tokenizer.ggml.bos_token_id": 5} | flags
    plain = tokenizer_of(words, "file").encode("The future", add_special_tokens=False).ids
    first, last = surrounded
    assert tokenizer_of(words, "file").encode("The future").ids == [5] * first + plain + [0] * last


def pieces(scores: dict[str, float]) -> dict[str, Any]:
    """SentencePiece's vocabulary: <unk>, <s>, </s>, 256 bytes, and pieces with these scores."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *scores]
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array([0.0] * 259 + list(scores.values()), np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(scores), np.int32),
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip


SCORES = {
    "▁t": -0.0, "he": -1.0, "▁the": -2.0, "in": -3.0, "ing": -4.0, "▁▁": -5.0, "th": -6.0,
    **{letter: -1e9 for letter in "▁thinge"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("the", ["<s>", "▁the"]),
        ("thing the", ["<s>", "▁t", "h", "ing", "▁the"]),
        ("  the", ["<s>", "▁▁", "▁the"]),
        ("é", ["<s>", "▁", "<0xC3>", "<0xA9>"]),
        ("", ["<s>"]),
        ("</s>the", ["<s>", "</s>", "▁the"]),
    ],
)
def test_sentencepiece_merges_by_score_with_bytes_for_the_rest(text: str, wanted: list[str]) -> None:
    made = tokenizer_of(pieces(SCORES), "file")
    assert made.encode(text).tokens == wanted
    assert made.decode(made.encode(text).ids) == text.replace("</s>", "")


def test_sentencepiece_without_a_space_before_the_text() -> None:
    made = tokenizer_of(pieces(SCORES) | {"tokenizer.ggml.add_space_prefix": False}, "file")
    assert made.encode("the in", add_special_tokens=False).tokens == ["t", "he", "▁", "in"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer.ggml.scores": np.zeros(3, np.float32)}, "no score for each token"),
        (pieces(SCORES | {"th": -1.0}), "one score for 'he' and 'th'"),
        ({"tokenizer.ggml.remove_extra_whitespaces": True}, "a normalization"),
        ({"tokenizer.ggml.add_bos_token": 3}, "add_bos_token=3"),
        ({"tokenizer.ggml.token_type": ["x"]}, "0 types"),
    ],
)
def test_vocabularies_that_cannot_be_made_exactly_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        tokenizer_of(pieces(SCORES) | change, "file")
