"""A GGUF file, as llama.cpp runs them: one file with weights, tokenizer, chat template and all settings."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from torchless.errors import ExportError
from torchless.export.blocks import Blocks
from torchless.export.sources.chat_template import CHAT_TEMPLATE, read_chat_template
from torchless.export.sources.gguf_blocks import FORMS, blocks_of
from torchless.export.sources.gguf_config import FACTORS, config_of, hugging_face_name
from torchless.export.sources.gguf_file import GGUFFile, read_gguf
from torchless.export.sources.gguf_tokenizer import (
    MODEL,
    TEMPLATE,
    TOKENS,
    special_ids,
    special_tokens,
    tokenizer_of,
)
from torchless.export.sources.source import CONFIG, GENERATION, TOKENIZER, Source
from torchless.export.sources.tokenizer import read_tokenizer
from torchless.export.weights import Float, Read, Weights

SUFFIX = ".gguf"


def from_gguf(path: Path, tokenizer: object) -> Source:
    """The checkpoint under Hugging Face's names and with its config. Raises ExportError."""
    if not path.is_file():
        raise ExportError(f"{path} is missing: give the path of a GGUF file")
    file, where = read_gguf(path), str(path)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    config = config_of(file.metadata, shapes, file.values, where)
    files, settings = {}, {}
    if TOKENS in file.metadata or tokenizer is None:
        generation = special_ids(file.metadata, where)
        config |= {name: None for name in ("bos_token_id", "eos_token_id", "pad_token_id")} | generation
        settings = special_tokens(file.metadata, where)
        files[GENERATION] = json.dumps(generation, indent=2).encode()
    files[CONFIG] = json.dumps(config, indent=2).encode()
    if tokenizer is None:
        files[TOKENIZER] = _own_tokenizer(file, int(config["vocab_size"]), where)
    else:
        files[TOKENIZER] = read_tokenizer(tokenizer, config["model_type"])
    files |= (read_chat_template(tokenizer) if tokenizer is not None else {}) or _template(file, where)
    weights, (blocks, precision) = Weights(_tensors(file, config), where), _blocks(file, config)
    return Source(config, weights, where, files, tokenizer_config=settings, blocks=blocks, precision=precision)


def _own_tokenizer(file: GGUFFile, rows: int, where: str) -> bytes:
    made = tokenizer_of(file.metadata, where)
    if len(file.metadata[TOKENS]) > rows:
        raise ExportError(
            f"{where}: {MODEL} has {len(file.metadata[TOKENS]):,} tokens, the embedding {rows:,} rows: the file is "
            "damaged"
        )
    return str(made.to_str()).encode()


def _template(file: GGUFFile, where: str) -> dict[str, bytes]:
    template = file.metadata.get(TEMPLATE)
    if template is None:
        return {}
    if not isinstance(template, str):
        raise ExportError(f"{where}: {TEMPLATE} is a {type(template).__name__}, not a text")
    return {CHAT_TEMPLATE: template.encode()}


def _tensors(file: GGUFFile, config: dict[str, Any]) -> dict[str, Read]:
    """Readers by Hugging Face's names; what is in the config already is left out."""
    found: dict[str, Read] = {}
    for name in file.tensors:
        if name == FACTORS:
            continue
        read: Read = functools.partial(file.values, name)
        heads = interleaved_heads(name, config)
        found[hugging_face_name(name)] = functools.partial(_halves_of_heads, read, heads) if heads else read
    return found


def _blocks(file: GGUFFile, config: dict[str, Any]) -> tuple[dict[str, Callable[[], Blocks]], str]:
    """The quantized matrices by names without the body's prefix, and the type of most of their numbers."""
    found: dict[str, Callable[[], Blocks]] = {}
    counts: Counter[str] = Counter()
    for name, tensor in file.tensors.items():
        if tensor.kind in FORMS and len(tensor.shape) == 2:
            counts[tensor.kind.lower()] += int(np.prod(tensor.shape))
            key = hugging_face_name(name).removeprefix("model.")
            found[key] = functools.partial(_read_blocks, file, name, interleaved_heads(name, config))
    return found, counts.most_common(1)[0][0] if counts else "fp32"


def _read_blocks(file: GGUFFile, name: str, heads: int) -> Blocks:
    made = blocks_of(file.tensors[name].kind, file.raw(name))
    return made.in_halves(heads) if heads and made.shape[0] % (2 * heads) == 0 else made


def interleaved_heads(name: str, config: dict[str, Any]) -> int:
    """In how many heads a tensor's rows lie as llama.cpp turns them, in neighbours; 0 where they do not."""
    if config["model_type"] != "llama":
        return 0
    roles = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    role = name.split(".")[2] if name.startswith("blk.") and name.count(".") > 2 else ""
    return int(config[roles[role]]) if role in roles else 0


def _halves_of_heads(read: Read, heads: int) -> Float:
    """Rows as transformers turns them, a head's first half with its second: llama.cpp has pairs of neighbours."""
    array = read()
    rows = array.shape[0]
    if rows % (2 * heads):
        return array
    apart = array.reshape(heads, rows // heads // 2, 2, *array.shape[1:])
    turned: Float = apart.swapaxes(1, 2).reshape(array.shape)
    return turned
