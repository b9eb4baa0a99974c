"""Where a tokenizer comes from, always handed on as the text of a tokenizer.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from torchless.errors import ExportError
from torchless.export.sources.characters import META, read_characters
from torchless.export.sources.ranks import is_tiktoken, tokenizer_of_ranks
from torchless.export.sources.source import TOKENIZER, TOKENIZER_CONFIG, read_json
from torchless.export.sources.vocabulary import MERGED, WORDS, read_vocabulary

# Classes of transformers that belong to no family, and hand over token_type_ids only where they are told to.
PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")
SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")


def read_tokenizer(given: object, model_type: object = None) -> bytes:
    """The content of a tokenizer.json. Raises ExportError.

    given: a tokenizer.json, vocab.txt, vocab.json with its merges.txt, nanoGPT's meta.pkl, or the folder of one
    of them; a `tokenizers.Tokenizer`, a fast tokenizer of transformers, or an Encoding of tiktoken.
    model_type: of the model, by which a vocabulary is read that does not name its tokenizer's class.
    """
    if isinstance(given, str | os.PathLike):
        return _from_path(Path(given), model_type)
    if is_tiktoken(given):
        return _content(tokenizer_of_ranks(given))
    fast = getattr(given, "backend_tokenizer", given)  # of transformers
    if not hasattr(fast, "to_str"):
        raise ExportError(
            f"tokenizer= is a {type(given).__name__}: give a path, a tokenizers.Tokenizer, a fast tokenizer of "
            "transformers or an Encoding of tiktoken"
        )
    return _content(fast)


def gives_token_types(given: object) -> bool | None:
    """Whether transformers hands this tokenizer's token_type_ids to the model; None where nothing says so.

    given: as for read_tokenizer; of files, tokenizer_config.json beside them decides. Raises ExportError.
    """
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        where = (path if path.is_dir() else path.parent) / TOKENIZER_CONFIG
        settings = read_json(where) if where.is_file() else {}
        names = settings.get("model_input_names")
        if names is None:
            return False if settings.get("tokenizer_class") in PLAIN else None
    else:
        where, names = Path(type(given).__name__), getattr(given, "model_input_names", None)
    if names is not None and not isinstance(names, list):
        raise ExportError(f"{where}: model_input_names is {names!r}, expected a list")
    return None if names is None else "token_type_ids" in names


def brings_tokenizer(folder: Path) -> bool:
    """Whether the folder holds anything that read_tokenizer takes."""
    names = (TOKENIZER, META, WORDS, *(name for pair in MERGED for name in pair))
    return any((folder / name).is_file() for name in names)


def _from_path(path: Path, model_type: object) -> bytes:
    folder, name = (path, "") if path.is_dir() else (path.parent, path.name)
    if name in (WORDS, *(name for pair in MERGED for name in pair)) and path.is_file():
        return _content(read_vocabulary(folder, model_type))
    if path.suffix == ".pkl" and path.is_file():
        return _content(read_characters(path))
    if name in SENTENCEPIECE and path.is_file():
        raise _not_converted(path)
    if name and not path.is_file():
        raise ExportError(
            f"the tokenizer {path} is missing: give a tokenizer.json, vocab.txt, vocab.json with its merges.txt, "
            "nanoGPT's meta.pkl, or the folder of one of them"
        )
    if name or (folder / TOKENIZER).is_file():
        return _tokenizer_json(path if name else folder / TOKENIZER)
    if (folder / META).is_file():
        return _content(read_characters(folder / META))
    if brings_tokenizer(folder):
        return _content(read_vocabulary(folder, model_type))
    for model in SENTENCEPIECE:
        if (folder / model).is_file():
            raise _not_converted(folder / model)
    return _tokenizer_json(folder / TOKENIZER)


def _tokenizer_json(path: Path) -> bytes:
    if not path.is_file():
        raise ExportError(
            f"{path} is missing: write it with AutoTokenizer.from_pretrained(...).save_pretrained(folder), "
            "or pass tokenizer="
        )
    content = path.read_bytes()
    try:
        FastTokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise ExportError(f"{path} is not a tokenizer of the tokenizers library ({error})") from None
    return content


def _not_converted(path: Path) -> ExportError:
    folder = path.parent.as_posix()
    return ExportError(
        f"{path} is a SentencePiece model without its tokenizer.json: make one, once, with\n"
        "pip install transformers sentencepiece protobuf\n"
        f'python -c "from transformers import AutoTokenizer as T; '
        f"T.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


def _content(fast: Any) -> bytes:
    return str(fast.to_str()).encode()
