"""llama.cpp by llama-cpp-python. Its Python class continues one text at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np


def convert(source: str, out: str, form: str) -> int:
    """A GGUF file in float32, quantized to `form` by llama.cpp itself: Q4_0 keeps the vocabulary in Q6_K."""
    Path(out).mkdir()
    path = Path(out) / "model.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{form}")
    if llama_cpp.llama_model_quantize(bytes(Path(source) / "model.gguf"), bytes(path), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp did not quantize {source}")
    model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
    positions = 4 * llama_cpp.llama_model_n_ctx_train(model) * llama_cpp.llama_model_n_embd(model)
    return llama_cpp.llama_model_size(model) - positions


class Model:
    flash = True  # llama.cpp's own choice where it is left to choose

    def __init__(self, folder: str, threads: int, room: int) -> None:
        path = str(Path(folder) / "model.gguf")
        self._model = llama_cpp.Llama(
            path, n_ctx=room, n_threads=threads, n_threads_batch=threads, flash_attn=self.flash, verbose=False
        )

    def ids(self, text: str) -> list[int]:
        return self._model.tokenize(text.encode(), add_bos=False)

    def generate(self, prompts: list[list[int]], new: int, heard: Callable[[int], None]) -> list[list[int]]:
        """Token by token through llama.cpp's own functions: Llama.generate takes 4 to 6 % longer for the same."""
        (prompt,) = prompts
        made: list[int] = []
        logits = self._read(prompt)
        while True:
            made.append(int(logits.argmax()))
            heard(len(made))
            if len(made) == new:
                return [made]
            token = (llama_cpp.llama_token * 1)(made[-1])
            if llama_cpp.llama_decode(self._model.ctx, llama_cpp.llama_batch_get_one(token, 1)):
                raise RuntimeError("llama_decode failed")
            logits = self._last()

    def logits(self, ids: list[int]) -> list[float]:
        return self._read(ids).tolist()

    def _read(self, ids: list[int]) -> np.ndarray:
        self._model.reset()  # or it would go on from the text before
        self._model.eval(ids)
        return self._last()

    def _last(self) -> np.ndarray:
        logits = llama_cpp.llama_get_logits_ith(self._model.ctx, -1)
        return np.ctypeslib.as_array(logits, shape=(self._model.n_vocab(),))
