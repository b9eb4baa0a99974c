"""Where a checkpoint comes from: a Hugging Face folder or a live torch module."""

from __future__ import annotations

import functools
import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as FastTokenizer

from torchless.errors import ExportError
from torchless.export.weights import Read, Weights

if TYPE_CHECKING:
    import torch

CONFIG, TOKENIZER, GENERATION = "config.json", "tokenizer.json", "generation_config.json"


@dataclass(frozen=True)
class Source:
    """A checkpoint, opened but not read: tensors are read one by one while the graph is written."""

    config: Mapping[str, Any]
    weights: Weights
    where: str
    files: Mapping[str, bytes]  # what goes into the bundle as it is: config, tokenizer, generation config
    folder: Path | None = None
    module: Any = None  # the live torch module, where there is one

    @property
    def architectures(self) -> list[str]:
        """Names of Hugging Face classes: the checkpoint's, or the live module's class and those it derives from."""
        if self.module is not None:
            return [kind.__name__ for kind in type(self.module).__mro__]
        named = self.config.get("architectures")
        return [str(name) for name in named] if isinstance(named, list) else []


def open_source(source: str | os.PathLike[str] | torch.nn.Module, tokenizer: object = None) -> Source:
    """A folder in Hugging Face layout, or a live module with a `.config`.

    tokenizer: path of a tokenizer.json or of its folder, a `tokenizers.Tokenizer` or a fast tokenizer of
    transformers; needed where the source brings none. Raises ExportError.
    """
    if isinstance(source, str | os.PathLike):
        return _from_folder(Path(source), tokenizer)
    if hasattr(source, "state_dict") and hasattr(source, "config"):
        return _from_module(source, tokenizer)
    raise ExportError(
        f"cannot export a {type(source).__name__}: give a checkpoint's folder, or a torch module of "
        "transformers with its .config"
    )


def _from_folder(folder: Path, tokenizer: object) -> Source:
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a folder: give the folder that save_pretrained wrote")
    config = _read_json(folder / CONFIG)
    files = {CONFIG: (folder / CONFIG).read_bytes()}
    if (folder / GENERATION).is_file():
        _read_json(folder / GENERATION)
        files[GENERATION] = (folder / GENERATION).read_bytes()
    files[TOKENIZER] = _tokenizer(tokenizer if tokenizer is not None else folder)
    return Source(config, Weights(_tensors(folder), str(folder)), str(folder), files, folder=folder)


def _from_module(module: Any, tokenizer: object) -> Source:
    config = json.loads(module.config.to_json_string(use_diff=False))
    config["architectures"] = [type(module).__name__]
    files = {CONFIG: json.dumps(config, indent=2).encode()}
    generation = getattr(module, "generation_config", None)
    if generation is not None:
        files[GENERATION] = generation.to_json_string(use_diff=True).encode()
    if tokenizer is not None:
        files[TOKENIZER] = _tokenizer(tokenizer)

    def read(tensor: torch.Tensor) -> Read:
        return lambda: tensor.detach().cpu().float().numpy()

    tensors = {name: read(tensor) for name, tensor in module.state_dict().items()}
    name = type(module).__name__
    return Source(config, Weights(tensors, name), name, files, module=module)


def _tokenizer(given: object) -> bytes:
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        path = path / TOKENIZER if path.is_dir() else path
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
    fast = getattr(given, "backend_tokenizer", given)  # of transformers
    if not hasattr(fast, "to_str"):
        raise ExportError(
            f"tokenizer= is a {type(given).__name__}: give a path, a tokenizers.Tokenizer or a fast tokenizer"
        )
    return str(fast.to_str()).encode()


def _tensors(folder: Path) -> dict[str, Read]:
    if (folder / "model.safetensors").is_file():  # before an index, as transformers does
        return _safetensors(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = _read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
            raise ExportError(f"{index} has no weight_map from tensors to files: download it again")
        shards = sorted(set(places.values()))
        if any(re.search(r"[/\\:]|^\.*$", shard) for shard in shards):  # Windows' separators too
            raise ExportError(f"{index} names a file outside the folder: do not trust this checkpoint")
        return {name: read for shard in shards for name, read in _safetensors(folder / shard).items()}
    for name in ("pytorch_model.bin", "model.pt", "pytorch_model.pt"):
        if (folder / name).is_file():
            return _torch_file(folder / name)
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


def _torch_file(path: Path) -> dict[str, Read]:
    try:
        import torch
    except ImportError:
        raise ExportError(
            f"{path.name} can only be read with torch: pip install 'torchless[torch]', or save the checkpoint "
            "as model.safetensors"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # a pickle is never executed
    except Exception as error:
        raise ExportError(
            f"{path} cannot be read with weights_only=True ({type(error).__name__}): save it as model.safetensors"
        ) from error
    if not isinstance(state, dict):
        raise ExportError(f"{path} holds a {type(state).__name__}, not a state dict: save module.state_dict()")

    def read(tensor: torch.Tensor) -> Read:
        return lambda: tensor.float().numpy()

    return {name: read(tensor) for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing: is {path.parent} a Hugging Face checkpoint?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path} holds a {type(value).__name__}, not an object")
    return value
