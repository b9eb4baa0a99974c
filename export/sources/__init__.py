"""Where a checkpoint comes from: a Hugging Face folder, a GGUF file, a live torch module, or nanoGPT's ckpt.pt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from torchless.errors import ExportError
from torchless.export.sources.gguf import SUFFIX, from_gguf
from torchless.export.sources.huggingface import from_folder
from torchless.export.sources.module import from_module
from torchless.export.sources.nanogpt import CHECKPOINT, from_nanogpt
from torchless.export.sources.source import CONFIG, GENERATION, TOKENIZER, Source

if TYPE_CHECKING:
    import torch

__all__ = ["CONFIG", "GENERATION", "TOKENIZER", "Source", "open_source"]


def open_source(source: str | os.PathLike[str] | torch.nn.Module, tokenizer: object = None) -> Source:
    """A folder in Hugging Face layout, a GGUF file, nanoGPT's ckpt.pt or its folder, or a module with a `.config`.

    tokenizer: what read_tokenizer takes; needed where the source brings none. Raises ExportError.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_file() and path.suffix == ".pt":
            return from_nanogpt(path, tokenizer)
        if path.suffix == SUFFIX and not path.is_dir():
            return from_gguf(path, tokenizer)
        if (path / CHECKPOINT).is_file() and not (path / CONFIG).is_file():
            return from_nanogpt(path / CHECKPOINT, tokenizer)
        return from_folder(path, tokenizer)
    if hasattr(source, "state_dict") and hasattr(source, "config"):
        return from_module(source, tokenizer)
    raise ExportError(
        f"cannot export a {type(source).__name__}: give a checkpoint's folder, or a torch module of "
        "transformers with its .config"
    )
