"""A checkpoint in Hugging Face layout: config.json, model.safetensors or torch's own files, a tokenizer."""

from __future__ import annotations

import functools
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.errors import ExportError
from torchless.export.sources.chat_template import read_chat_template
from torchless.export.sources.source import (
    CONFIG,
    GENERATION,
    SENTENCE_TRANSFORMERS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Source,
    read_json,
)
from torchless.export.sources.tokenizer import gives_token_types, read_tokenizer
from torchless.export.sources.torch_file import load, state_of
from torchless.export.weights import Read, Weights


def from_folder(folder: Path, tokenizer: object) -> Source:
    if not folder.is_dir():
        raise ExportError(
            f"{folder} is not a folder: give the folder that save_pretrained wrote, FILE.gguf, or nanoGPT's ckpt.pt"
        )
    config = read_json(folder / CONFIG)
    files = {CONFIG: (folder / CONFIG).read_bytes()}
    for name in (GENERATION, SENTENCE_TRANSFORMERS):
        if (folder / name).is_file():
            read_json(folder / name)
            files[name] = (folder / name).read_bytes()
    settings = read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    files[TOKENIZER] = read_tokenizer(folder if tokenizer is None else tokenizer, config.get("model_type"))
    files |= read_chat_template(tokenizer) or read_chat_template(folder)
    weights = Weights(_tensors(folder), str(folder))
    types = gives_token_types(folder if tokenizer is None else tokenizer)
    return Source(config, weights, str(folder), files, folder, tokenizer_config=settings, token_types=types)


def _tensors(folder: Path) -> dict[str, Read]:
    if (folder / "model.safetensors").is_file():  # before an index, as transformers does
        return _safetensors(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
            raise ExportError(f"{index} has no weight_map from tensors to files: download it again")
        shards = sorted(set(places.values()))
        if any(re.search(r"[/\\:]|^\.*$", shard) for shard in shards):  # Windows' separators too
            raise ExportError(f"{index} names a file outside the folder: do not trust this checkpoint")
        return {name: read for shard in shards for name, read in _safetensors(folder / shard).items()}
    for name in ("pytorch_model.bin", "model.pt", "pytorch_model.pt"):
        if (folder / name).is_file():
            return state_of(folder / name, load(folder / name))
    raise ExportError(f"{folder} holds no model.safetensors and no pytorch_model.bin: is it a checkpoint?")


def _safetensors(path: Path) -> dict[str, Read]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ExportError(f"{path.name} needs safetensors: pip install 'torchless[export]'") from None

    try:
        file: Any = safe_open(path, framework="numpy")
        names = list(file.keys())
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise ExportError(f"{path} is not a sound safetensors file ({error}): download it again") from None

    def read(name: str) -> Read:
        kind = header[name]["dtype"]
        if kind == "BF16":  # numpy has no such type
            return lambda: _bfloat16(path, 8 + length, header[name])
        if kind not in ("F64", "F32", "F16"):
            return functools.partial(_refuse_type, path, name, kind)
        return functools.partial(file.get_tensor, name)

    return {name: read(name) for name in names}


def _refuse_type(path: Path, name: str, kind: str) -> npt.NDArray[Any]:
    """Called only for a tensor that the graph needs: buffers of whole numbers are never read."""
    raise ExportError(f"{path}: {name} is {kind}: only float tensors of 16, 32 or 64 bits can be exported")


def _bfloat16(path: Path, base: int, entry: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """A bfloat16 is the upper half of a float32."""
    start, end = entry["data_offsets"]
    halves = np.fromfile(path, dtype="<u2", count=(end - start) // 2, offset=base + start)
    wide: npt.NDArray[np.float32] = (halves.astype(np.uint32) << 16).view(np.float32)
    shaped: npt.NDArray[np.float32] = wide.reshape(entry["shape"])
    return shaped
