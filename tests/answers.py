"""Questions, tokenizers and a model that are the same everywhere, and what transformers 4.57 answers.

Its question-answering pipeline is the reference, and 5.x no longer has it. So its answers are kept in
tests/runtime/data/question_answering.json; with transformers 4.57 and torch installed this file writes them:

    python tests/answers.py
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

EXPECTED = Path(__file__).parent / "runtime" / "data" / "question_answering.json"
POSITIONS = 48

WORDS = [
    "the", "whale", "is", "white", "and", "old", "sea", "ship", "captain", "call", "me", "ish", "ael", "who",
    "what", "where", "some", "years", "ago", "how", "long",
]  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"

CONTEXTS = {
    "short": "Call me Ishmael.",
    "accents": "  Der naïve Käse, e\u0301te\u0301: 🎉 the whale 中文字 is white!\r\nAnd\tthe sea is old.  ",
    "long": "Some years ago, never mind how long precisely, having little or no money in my purse, and nothing "
    "particular to interest me on shore, I thought I would sail about a little.\r\nThe captain of the white ship "
    "called me Ishmael 🎉🎉; the old whale, façade and naïveté, is in the sea. Who is the captain? Where is the "
    "whale? The captain is old and the whale is white.",
}
QUESTIONS = ["Who is the captain?", "where?"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 3},
    {"handle_impossible_answer": True, "top_k": 3},
    {"align_to_words": False, "top_k": 2},
    {"max_answer_len": 3},
    {"doc_stride": 4, "max_seq_len": 33, "top_k": 2, "max_answer_len": 6},
]


def wordpiece() -> Tokenizer:
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *LETTERS,
        *(f"##{letter}" for letter in LETTERS),
    ]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def byte_level() -> Tokenizer:
    """As RoBERTa's: every beginning of a word of WORDS with its space is a token."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = list(dict.fromkeys(("Ġ" + word[:i], word[i]) for word in WORDS for i in range(len(word))))
    vocabulary = {token: i for i, token in enumerate([*tokens, *(left + right for left, right in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    return tokenizer


def unigram() -> Tokenizer:
    """As XLM-RoBERTa's: a space is a letter of the word after it."""
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    pieces = [*((f"▁{word}", -4.0 - i / 64) for i, word in enumerate(WORDS)), ("▁", -5.0)]
    letters = [(letter, -6.0 - i / 64) for i, letter in enumerate(LETTERS + "ABCDIKSTWÄäéï")]
    tokenizer = Tokenizer(models.Unigram([*special, *pieces, *letters], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


TOKENIZERS = {"wordpiece": wordpiece, "byte-level": byte_level, "unigram": unigram}


def model() -> Any:
    """A BERT whose weights are sines, since random numbers may differ between versions of torch."""
    config = transformers.BertConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=POSITIONS, pad_token_id=0,
    )  # fmt: skip
    bert = transformers.BertForQuestionAnswering(config)
    with torch.no_grad():
        for name, parameter in bert.named_parameters():
            steps = torch.arange(parameter.numel(), dtype=torch.float64)
            waves = torch.sin(steps * steps * 0.37 + zlib.crc32(name.encode()) % 1000).reshape(parameter.shape)
            spread = 3.0 if name.startswith("qa_outputs") else 0.4
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + spread * waves)
    return bert.eval()


def cases() -> Iterator[tuple[str, str, str, str, dict[str, Any]]]:
    """A name, the tokenizer's, a question, a context, options."""
    for tokenizer, context, number, place in itertools.product(
        TOKENIZERS, CONTEXTS, range(len(QUESTIONS)), range(len(OPTIONS))
    ):
        if context == "long" or place < 4:
            name = f"{tokenizer}, {context}, {number}, {place}"
            yield name, tokenizer, QUESTIONS[number], CONTEXTS[context], OPTIONS[place]


def pipelines() -> dict[str, Any]:
    """transformers' own, by tokenizer."""
    special = {
        "wordpiece": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"},
        "byte-level": {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    }
    special["unigram"] = special["byte-level"]
    made = {}
    for name, make in TOKENIZERS.items():
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=make(), model_max_length=POSITIONS, **special[name]
        )
        made[name] = transformers.pipeline("question-answering", model=model(), tokenizer=fast, device="cpu")
    return made


if __name__ == "__main__":
    answering = pipelines()
    expected = {
        name: answering[tokenizer](question=question, context=context, **options)
        for name, tokenizer, question, context, options in cases()
    }
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(answers, ensure_ascii=True)}" for name, answers in expected.items()
    )
    EXPECTED.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
