"""Tokenizers of the days before tokenizer.json: built from vocab.txt, or from vocab.json and merges.txt.

A row of KINDS is what transformers does for that class, so that ids come out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from torchless.errors import ExportError
from torchless.export.config import Config
from torchless.export.sources.source import TOKENIZER_CONFIG, read_json

WORDS = "vocab.txt"
MERGED = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's names, and OpenAI's
ROLES = [f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]


@dataclass(frozen=True)
class Files:
    """A folder's vocabulary, and the settings that lie beside it."""

    folder: Path
    config: Config  # tokenizer_config.json
    special: Mapping[str, Any]  # special_tokens_map.json, which older folders have instead

    def token(self, role: str, customary: str, **flags: bool) -> AddedToken:
        """The special token of this role, in the words of the settings or else as its family has it."""
        given = self.config.raw.get(f"{role}_token") or self.special.get(f"{role}_token") or customary
        if isinstance(given, str):
            return AddedToken(given, **{"normalized": False, "special": True} | flags)
        return _added(given, self.folder / TOKENIZER_CONFIG)

    def named(self) -> list[AddedToken]:
        """Every special token that the settings name, those without a role too."""
        found: list[Any] = []
        for settings in (self.config.raw, self.special):
            found += [settings[name] for name in ROLES if settings.get(name)]
            more = settings.get("additional_special_tokens") or []
            if not isinstance(more, list):
                raise ExportError(f"{self.folder}: additional_special_tokens is {more!r}, expected a list")
            found += more
        return [_added(token, self.folder / TOKENIZER_CONFIG) for token in found]

    def words(self) -> dict[str, int]:
        """vocab.txt: a token a line, numbered from 0."""
        lines = _text(self.folder / WORDS).split("\n")
        return {line.rstrip("\r"): i for i, line in enumerate(lines[:-1] if not lines[-1] else lines)}

    def merged(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """The ids of BPE's tokens, and its merges in order."""
        for vocabulary, merges in MERGED:
            if (self.folder / vocabulary).is_file() and (self.folder / merges).is_file():
                return _ids(self.folder / vocabulary), _merges(self.folder / merges)
        raise ExportError(f"{self.folder} holds no vocab.json with its merges.txt: copy them there")


def read_vocabulary(folder: Path, model_type: object) -> Tokenizer:
    """The tokenizer of the class that tokenizer_config.json names, or else of the model's type.

    Raises ExportError for a class whose tokenizer cannot be told from such files, and for broken ones.
    """
    settings = _optional(folder / TOKENIZER_CONFIG)
    kind = settings.get("tokenizer_class") or CLASSES.get(str(model_type)) or _guess(folder)
    build = KINDS.get(str(kind).removesuffix("Fast"))
    if build is None:
        raise ExportError(
            f"{folder}: a {kind} cannot be made from its vocabulary alone (these can: {', '.join(KINDS)}): write "
            "tokenizer.json with AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    files = Files(
        folder, Config(settings, str(folder / TOKENIZER_CONFIG)), _optional(folder / "special_tokens_map.json")
    )
    try:
        tokenizer, special = build(files)
        _add(tokenizer, files, special)
    except ExportError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ExportError(f"{folder}: its vocabulary makes no tokenizer ({error}): download it again") from None
    return tokenizer


Built = tuple[Tokenizer, list[AddedToken]]  # and its special tokens


def _gpt1(files: Files) -> Built:
    """BPE whose last pieces end in </w>, of lower-cased words split as BERT's."""
    unknown = files.token("unk", "<unk>")
    vocabulary, merges = files.merged()
    model = models.BPE(vocabulary, merges, unk_token=unknown.content, end_of_word_suffix="</w>", fuse_unk=False)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer, [unknown]


def _gpt2(files: Files) -> Built:
    """Byte-level BPE: every text has tokens."""
    files.config.refuse("add_bos_token", False)
    files.config.refuse("add_eos_token", False)
    tokenizer = Tokenizer(models.BPE(*files.merged()))
    space = files.config.flag("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, [files.token(role, "<|endoftext|>") for role in ("bos", "eos", "unk")]


def _roberta(files: Files) -> Built:
    """GPT-2's, between <s> and </s>; a pair has two </s> in its middle."""
    tokenizer, _ = _gpt2(files)
    special = _spans(files, "<unk>")
    _surround(tokenizer, special, files.config.flag("add_prefix_space", False))
    return tokenizer, list(special.values())


def _bert(files: Files) -> Built:
    """WordPiece of words split at spaces and punctuation, between [CLS] and [SEP]."""
    names = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    special = {role: files.token(role, customary) for role, customary in names.items()}
    tokenizer = _wordpiece(files, special["unk"])
    first, last = special["cls"].content, special["sep"].content
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[_with_id(tokenizer, token) for token in (first, last)],
    )
    return tokenizer, list(special.values())


def _mpnet(files: Files) -> Built:
    """BERT's pieces, RoBERTa's special tokens."""
    special = _spans(files, "[UNK]")
    tokenizer = _wordpiece(files, special["unk"])
    _surround(tokenizer, special, False)
    return tokenizer, list(special.values())


def _wordpiece(files: Files, unknown: AddedToken) -> Tokenizer:
    config = files.config
    config.refuse("do_basic_tokenize", True)
    config.refuse("never_split", [])
    tokenizer = Tokenizer(models.WordPiece(files.words(), unk_token=unknown.content))
    accents = config.raw.get("strip_accents")
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.flag("tokenize_chinese_chars", True),
        strip_accents=None if accents is None else config.flag("strip_accents", False),
        lowercase=config.flag("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _spans(files: Files, unknown: str) -> dict[str, AddedToken]:
    names = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": unknown, "pad": "<pad>"}
    special = {role: files.token(role, customary) for role, customary in names.items()}
    return special | {"mask": files.token("mask", "<mask>", lstrip=True)}  # it takes the space before it along


def _surround(tokenizer: Tokenizer, special: Mapping[str, AddedToken], space: bool) -> None:
    last, first = (_with_id(tokenizer, special[role].content) for role in ("sep", "cls"))
    tokenizer.post_processor = processors.RobertaProcessing(last, first, trim_offsets=True, add_prefix_space=space)


def _with_id(tokenizer: Tokenizer, token: str) -> tuple[str, int]:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ExportError(f"the vocabulary has no {token}, which stands around every text: is it the model's own?")
    return token, found


KINDS: dict[str, Callable[[Files], Built]] = {
    "OpenAIGPTTokenizer": _gpt1,
    "GPT2Tokenizer": _gpt2,
    "RobertaTokenizer": _roberta,
    "BertTokenizer": _bert,
    "DistilBertTokenizer": _bert,
    "ElectraTokenizer": _bert,
    "MPNetTokenizer": _mpnet,
}
CLASSES = {
    "openai-gpt": "OpenAIGPTTokenizer",
    "gpt2": "GPT2Tokenizer",
    "roberta": "RobertaTokenizer",
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
}


def _guess(folder: Path) -> str:
    """For a vocabulary that comes without a config."""
    return "BertTokenizer" if (folder / WORDS).is_file() else "GPT2Tokenizer"


def _add(tokenizer: Tokenizer, files: Files, special: list[AddedToken]) -> None:
    """Mark the special tokens that the vocabulary has, and add those that were added to it after training."""
    later = _added_json(files) | _added_tokens_decoder(files)
    for index, token in sorted(later.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != index:
            raise ExportError(
                f"{files.folder}: the added token {token.content!r} should have the id {index}, and comes out as "
                f"{tokenizer.token_to_id(token.content)}: its vocabulary and its added tokens do not fit"
            )
    settled = {token.content for token in later.values()}
    for token in [*special, *files.named()]:
        if token.content not in settled and tokenizer.token_to_id(token.content) is not None:
            tokenizer.add_special_tokens([token])
            settled.add(token.content)


def _added_json(files: Files) -> dict[int, AddedToken]:
    """added_tokens.json, of older folders: the special ones are those that the settings name."""
    where = files.folder / "added_tokens.json"
    special = {token.content: token for token in files.named()}
    try:
        return {
            int(index): special.get(token) or AddedToken(token, normalized=True)
            for token, index in _optional(where).items()
        }
    except (TypeError, ValueError):
        raise ExportError(f"{where} does not map tokens to ids") from None


def _added_tokens_decoder(files: Files) -> dict[int, AddedToken]:
    """added_tokens_decoder in tokenizer_config.json, of newer ones."""
    where = files.folder / TOKENIZER_CONFIG
    given = files.config.raw.get("added_tokens_decoder") or {}
    try:
        return {int(index): _added(token, where, special=False) for index, token in given.items()}
    except (AttributeError, ValueError):
        raise ExportError(f"{where}: added_tokens_decoder does not map ids to tokens") from None


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _added(given: Any, where: Path, special: bool = True) -> AddedToken:
    """A token as JSON has it: its text, or an object; `special` unless the object says otherwise."""
    if isinstance(given, str):
        return AddedToken(given, normalized=not special, special=special)
    if not isinstance(given, dict) or not isinstance(given.get("content"), str):
        raise ExportError(f"{where}: {given!r} is not a token: expected text, or an object with its content")
    flags = {name: bool(given[name]) for name in FLAGS if name in given}
    return AddedToken(given["content"], **{"normalized": not special, "special": special} | flags)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ExportError(f"{path} is missing: copy it there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read ({error}): download it again") from None


def _ids(path: Path) -> dict[str, int]:
    ids = read_json(path)
    if any(type(index) is not int or index < 0 for index in ids.values()) or len(set(ids.values())) != len(ids):
        raise ExportError(f"{path} does not give each token an id of its own: download it again")
    return ids


def _merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise ExportError(f"{path}, line {number}: {line!r} is not a merge of two tokens: download it again")
        merges.append((left, right))
    return merges
