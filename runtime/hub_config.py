"""What a checkpoint's or an exported model's own JSON files say: labels, special tokens, pooling.

The files are Hugging Face's: config.json, generation_config.json, tokenizer_config.json, and sentence-transformers'
modules.json. `error` is the class that a mistake in them raises.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchless.errors import TorchlessError
from torchless.manifest import Pooling

Error = type[TorchlessError]

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
ROLES = ("bos", "eos", "pad", "cls", "sep", "mask", "unk")
# What BERT's and RoBERTa's tokenizers call them.
CUSTOMARY = {
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "unk": ("[UNK]", "<unk>"),
    "pad": ("[PAD]", "<pad>"),
}
MODES = ("mean", "cls", "max", "lasttoken")
# Before sentence-transformers 5.4 each mode was a field of its own.
FIELDS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


def read_json(path: Path, error: Error) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as reason:
        raise error(f"{path} cannot be read ({reason})") from None


def read_object(path: Path, error: Error) -> dict[str, Any]:
    found = read_json(path, error)
    if not isinstance(found, dict):
        raise error(f"{path} holds a {type(found).__name__}, not an object: download it again")
    return found


def labels_of(config: Mapping[str, Any], columns: int, error: Error) -> tuple[str, ...]:
    """id2label in order; a config without one has Hugging Face's LABEL_0, LABEL_1, ..."""
    given = config.get("id2label") or {i: f"LABEL_{i}" for i in range(columns)}
    try:
        by_id = {int(key): str(label) for key, label in given.items()}
        labels = tuple(by_id[i] for i in range(len(by_id)))
    except (AttributeError, KeyError, ValueError):
        raise error("config.json: id2label does not number its labels 0, 1, 2, ...") from None
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise error(f"config.json: id2label gives several labels the name {twice[0]!r}: make them differ")
    if len(labels) != columns:
        raise error(f"config.json: id2label names {len(labels)} labels, the classifier has {columns}")
    return labels


def problem_type_of(config: Mapping[str, Any], error: Error) -> str:
    given = config.get("problem_type")
    if given is not None and given not in PROBLEM_TYPES:
        raise error(f"config.json: problem_type={given!r} is unknown (known: {', '.join(PROBLEM_TYPES)})")
    return str(given or PROBLEM_TYPES[0])


def special_tokens_of(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    tokenizer: str | None,
    vocab_size: int,
) -> dict[str, int | list[int]]:
    """Ids by role. Those of the generation config win over the config's, as in transformers.

    tokenizer: the text of tokenizer.json, or None. Configs carry ids of other vocabularies, and -1 for none: they
    are left out.
    """
    found: dict[str, int | list[int]] = {}
    for role in ROLES:
        value = generation.get(f"{role}_token_id", config.get(f"{role}_token_id"))
        if all(isinstance(i, int) and 0 <= i < vocab_size for i in (value if isinstance(value, list) else [value])):
            found[role] = value
    if tokenizer is None:
        return found
    from tokenizers import Tokenizer

    fast = Tokenizer.from_str(tokenizer)
    for role, customary in CUSTOMARY.items():
        given = _token_of(tokenizer_config, role)
        ids = [fast.token_to_id(token) for token in ([given] if given else customary)]
        known = next((i for i in ids if i is not None and i < vocab_size), None)
        if role not in found and known is not None:
            found[role] = known
    return found


def _token_of(tokenizer_config: Mapping[str, Any], role: str) -> str | None:
    """The text of a special token, where tokenizer_config.json has it."""
    given = tokenizer_config.get(f"{role}_token")
    text = given.get("content") if isinstance(given, dict) else given
    return text if isinstance(text, str) else None


def read_pooling(folder: Path, error: Error) -> tuple[Pooling, int | None] | None:
    """Pooling and the longest input that sentence-transformers' modules.json asks for, or None without one."""
    path = folder / "modules.json"
    if not path.is_file():
        return None
    modules = read_json(path, error)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise error(f"{path} is no list of modules: download it again")
    pooling, limit = Pooling("mean", normalize=False), None
    for module in modules:
        kind, where = str(module.get("type", "")).rsplit(".", 1)[-1], folder / str(module.get("path", ""))
        if kind == "Transformer":
            limits = where / "sentence_bert_config.json"
            limit = _longest(limits, error) if limits.is_file() else None
        elif kind == "Pooling":
            pooling = Pooling(_mode(where / "config.json", error), pooling.normalize)
        elif kind == "Normalize":
            pooling = Pooling(pooling.mode, normalize=True)
        else:
            raise error(f"{path}: the module {kind!r} is not supported (Transformer, Pooling, Normalize)")
    return pooling, limit


def _longest(path: Path, error: Error) -> int | None:
    """max_seq_length, in tokens; null leaves it to the model."""
    limit = read_object(path, error).get("max_seq_length")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise error(f"{path}: max_seq_length is {limit!r}, expected a whole number of 1 or more")
    return limit


def _mode(path: Path, error: Error) -> str:
    """The one mode that a Pooling module has; several, whose vectors would be joined, are refused."""
    settings = read_object(path, error)
    if "pooling_mode" in settings:
        given = settings["pooling_mode"]
        modes = [str(mode) for mode in given] if isinstance(given, list) else [str(given)]
    else:
        modes = [
            FIELDS.get(name, name)
            for name, on in settings.items()
            if name.startswith("pooling_mode_") and on is True
        ]
    if len(modes) != 1 or modes[0] not in MODES:
        raise error(f"{path}: pooling by {', '.join(modes) or 'no mode'} is not supported ({', '.join(MODES)})")
    return modes[0]
