"""torch, by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers


def convert(source: str, out: str, form: str) -> None:
    """The checkpoint as it is."""
    Path(out).symlink_to(source, target_is_directory=True)


class Model:
    def __init__(self, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = self._load(folder, threads)

    def _load(self, folder: str, threads: int) -> Any:
        return transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()

    def hidden(self, ids: Any) -> Any:
        given = torch.from_numpy(ids)
        with torch.inference_mode():
            found = self._model(input_ids=given, attention_mask=torch.ones_like(given))
        return found.last_hidden_state.numpy()
