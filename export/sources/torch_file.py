"""torch's own files, which are pickles: opened only with weights_only=True, so that no code in them runs."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchless.errors import ExportError
from torchless.export.weights import Read

if TYPE_CHECKING:
    import torch


def load(path: Path) -> Any:
    """What the file holds, tensors mapped rather than read where its format allows. Raises ExportError."""
    try:
        import torch
    except ImportError:
        raise ExportError(
            f"{path.name} can only be read with torch: pip install 'torchless[torch]', or save the checkpoint "
            "as model.safetensors"
        ) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        raise ExportError(
            f"{path} cannot be read with weights_only=True ({type(error).__name__}): save it as model.safetensors"
        ) from error


def state_of(path: Path, state: object) -> dict[str, Read]:
    """The tensors of a state dict that came out of `path`."""
    if not isinstance(state, dict):
        raise ExportError(f"{path} holds a {type(state).__name__}, not a state dict: save module.state_dict()")
    return readers(state)


def readers(state: Mapping[str, Any]) -> dict[str, Read]:
    """Tensors by name, converted to float32 when they are read."""
    import torch

    def read(tensor: torch.Tensor) -> Read:
        return lambda: tensor.detach().cpu().float().numpy()

    return {name: read(tensor) for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
