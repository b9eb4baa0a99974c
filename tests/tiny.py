"""Models and tokenizers small enough to be made for one test: random, uneven weights and a few sentences."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from torchless.errors import ExportError
from torchless.export import export

SENTENCES = [
    "The future of the union is strong, and its people are stronger.",
    "You have won a prize! Click here to claim your free money now.",
    "Call me Ishmael. Some years ago, never mind how long precisely.",
    "A whale-ship was my Yale College and my Harvard.",
    "Please find the minutes of the meeting attached, as agreed on Monday.",
    "Das Übermaß an Käse ärgert naïve façades.",
]
END = "<|endoftext|>"

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@functools.cache
def bpe_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


def bpe() -> Tokenizer:
    """Byte-level BPE of 320 tokens, as GPT-2's: any text can be encoded; the end token is 0."""
    return Tokenizer.from_str(bpe_json())


def pieces(words: Counter[str]) -> list[str]:
    """The words and all their parts that come of joining the commonest pair again and again, of equals the first.

    The trainer of the tokenizers library does the same, but breaks ties by chance.
    """
    split = {word: [word[0], *(f"##{letter}" for letter in word[1:])] for word in sorted(words)}
    found = sorted({piece for parts in split.values() for piece in parts} | set("".join(words)))
    while pairs := Counter({pair: 0 for parts in split.values() for pair in pairwise(parts)}):
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        left, right = max(pairs, key=pairs.__getitem__)
        found.append(left + right.removeprefix("##"))
        for parts in split.values():
            for i in range(len(parts) - 2, -1, -1):
                if parts[i : i + 2] == [left, right]:
                    parts[i : i + 2] = [found[-1]]
    return found


@functools.cache
def wordpiece_json() -> str:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    normal = [tokenizer.normalizer.normalize_str(sentence) for sentence in SENTENCES]
    words = Counter(word for text in normal for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*special, *pieces(words)])}
    tokenizer.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer.to_str()


def wordpiece() -> Tokenizer:
    """WordPiece as BERT's, with [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3 and [MASK] 4."""
    return Tokenizer.from_str(wordpiece_json())


def uneven(model: Any, seed: int) -> Any:
    """The model with every weight random: no bias zero, no norm's scale one, so that none can go missing."""
    generator = torch.Generator().manual_seed(seed)
    spread = min(0.3, 1.7 * model.config.hidden_size**-0.5)  # or float32 itself is too coarse for the tolerance
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def gpt2(seed: int = 7, **config: Any) -> transformers.GPT2LMHeadModel:
    """A GPT-2 of two layers of width 32, in float32; the vocabulary is that of `bpe`."""
    defaults = dict(
        vocab_size=320, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
        attn_implementation="eager",
    )  # fmt: skip
    return uneven(transformers.GPT2LMHeadModel(transformers.GPT2Config(**defaults | config)), seed)


BERTS = {
    "fill-mask": transformers.BertForMaskedLM,
    "text-classification": transformers.BertForSequenceClassification,
    "feature-extraction": transformers.BertModel,
}
# Those of `bert` whose bundles not every test shares.
MORE_BERTS = {
    "question-answering": transformers.BertForQuestionAnswering,
    "token-classification": transformers.BertForTokenClassification,
}


def bert(task: str, seed: int = 7, **config: Any) -> Any:
    """A BERT of two layers of width 32, in float32; the vocabulary is that of `wordpiece`."""
    defaults = dict(
        vocab_size=wordpiece().get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=40, pad_token_id=0,
    )  # fmt: skip
    return uneven((BERTS | MORE_BERTS)[task](transformers.BertConfig(**defaults | config)), seed)


def bert_for(kind: str, seed: int = 7, **config: Any) -> Any:
    """The same with the head of transformers' class Bert`kind`."""
    return uneven(getattr(transformers, f"Bert{kind}")(bert("feature-extraction", **config).config), seed)


SMALL = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=40,
    pad_token_id=0,
)  # fmt: skip
ROBERTA = SMALL | dict(max_position_embeddings=42, type_vocab_size=1, pad_token_id=1)
# What the names of a family's classes begin with, and the config of a tiny one.
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("Albert", SMALL | dict(embedding_size=16, num_hidden_layers=3)),
    "camembert": ("Camembert", ROBERTA),
    "distilbert": (
        "DistilBert", dict(dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40, pad_token_id=0)
    ),
    "deberta-v2": (  # as v3 has it, with fewer buckets than distances
        "DebertaV2", SMALL | dict(
            relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm",
            position_buckets=8, position_biased_input=False, type_vocab_size=0,
        )
    ),
    "electra": ("Electra", SMALL | dict(embedding_size=16)),
    "modernbert": (  # two local layers between two global ones
        "ModernBert", SMALL | dict(
            num_hidden_layers=4, local_attention=12, attn_implementation="eager",
            bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3,
        )
    ),
    "mpnet": ("MPNet", SMALL | dict(max_position_embeddings=42, pad_token_id=1)),
    "roberta": ("Roberta", ROBERTA),
    "xlm-roberta": ("XLMRoberta", ROBERTA),
}  # fmt: skip


def encoder(family: str, kind: str, seed: int = 7, **config: Any) -> Any:
    """The class `kind` ("ForMaskedLM") of a family in ENCODERS; the vocabulary is that of `wordpiece`."""
    prefix, small = ENCODERS[family]
    defaults = small | dict(vocab_size=wordpiece().get_vocab_size())
    made = getattr(transformers, f"{prefix}Config")(**defaults | config)
    return uneven(getattr(transformers, prefix + kind)(made), seed)


def save(model: Any, folder: Path, tokenizer: Tokenizer | None = None) -> Path:
    """A checkpoint in Hugging Face layout."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    return folder


def change_json(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file; a field that is `...` is taken out."""
    content = json.loads(path.read_text(encoding="utf-8")) | fields
    kept = {name: value for name, value in content.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")


def hear_ctrl_c() -> None:
    """For a child process: a shell starts background jobs deaf to Ctrl-C, and their children inherit it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def furthest(one: Any, other: Any) -> float:
    """The largest absolute difference of two arrays of one shape."""
    one, other = np.asarray(one), np.asarray(other)
    assert one.shape == other.shape, (one.shape, other.shape)
    assert np.isfinite(one).all()
    return float(np.abs(one - other).max(initial=0))


def refused(source: Any, match: str, tmp_path: Path, **options: Any) -> None:
    """Exporting raises an ExportError that matches, and leaves nothing in tmp_path."""
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ExportError, match=match):
        export(source, tmp_path / "out", **options)
    assert sorted(os.listdir(tmp_path)) == before
