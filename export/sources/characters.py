"""nanoGPT's character-level vocabulary, meta.pkl, as a tokenizer: one token a character, and back exactly."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from torchless.errors import ExportError

META = "meta.pkl"


class _Plain(pickle.Unpickler):
    """Unpickles dicts, lists, texts and numbers, and nothing that names a class or a function."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_characters(path: Path) -> Tokenizer:
    """The tokenizer of the `stoi` in a meta.pkl. Raises ExportError; nothing in the pickle is executed.

    A character that is not in the vocabulary cannot be encoded: there is no token for unknown ones.
    """
    ids = _ids(path, _unpickled(path))
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # line ends, too
    tokenizer.decoder = decoders.Fuse()  # nothing between two tokens
    return tokenizer


UNKNOWN = "<unk>"  # not a single character, so never in the vocabulary: asking for it is an error


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            return _Plain(stream).load()
    except Exception as error:  # a hostile pickle can raise anything
        raise ExportError(
            f"{path} is not a plain pickle of nanoGPT's meta ({str(error) or type(error).__name__}): only dicts, "
            "lists, texts and numbers are read"
        ) from None


def _ids(path: Path, meta: Any) -> dict[str, int]:
    ids = meta.get("stoi") if isinstance(meta, dict) else None
    if not isinstance(ids, dict) or not ids:
        raise ExportError(f"{path} has no stoi, from characters to ids: is it the meta.pkl of nanoGPT's data set?")
    if odd := [text for text in ids if not isinstance(text, str) or len(text) != 1 or "\ud800" <= text <= "\udfff"]:
        raise ExportError(f"{path}: stoi holds {odd[0]!r}, which is not a single character")
    if sorted(ids.values(), key=repr) != sorted(range(len(ids)), key=repr):
        raise ExportError(f"{path}: stoi does not number its characters 0, 1, 2, ...")
    return ids
