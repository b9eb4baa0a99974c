"""CTranslate2."""

from __future__ import annotations

from typing import Any

import ctranslate2
import numpy as np


def convert(source: str, out: str, form: str) -> None:
    """A checkpoint, with weights in `form`: float32, int8."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(source).convert(out, quantization=form)


class Model:
    def __init__(self, folder: str, threads: int) -> None:
        self._model = ctranslate2.Encoder(folder, intra_threads=threads, inter_threads=1)

    def hidden(self, ids: Any) -> Any:
        count, length = ids.shape
        given = ctranslate2.StorageView.from_array(ids.astype(np.int32))
        lengths = ctranslate2.StorageView.from_array(np.full(count, length, np.int32))
        return np.asarray(self._model.forward_batch(given, lengths=lengths).last_hidden_state)
