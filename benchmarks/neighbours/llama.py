"""llama.cpp by llama-cpp-python. Its Python class continues one text at a time."""

from __future__ import annotations

import ctypes
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np


def convert(source: str, out: str, form: str) -> int:
    """A GGUF file as it is (`gguf`), or made `form` by llama.cpp itself: Q4_0 keeps the vocabulary in Q6_K."""
    Path(out).mkdir()
    path, given = Path(out) / "model.gguf", Path(source) / "model.gguf"
    if form == "gguf":
        shutil.copy(given, path)
    else:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{'ALL' if form == 'F32' else 'MOSTLY'}_{form}")
        params.allow_requantize = form == "F32"
        if llama_cpp.llama_model_quantize(bytes(given), bytes(path), ctypes.byref(params)):
            raise SystemExit(f"llama.cpp did not quantize {source}")
    model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
    name = ctypes.create_string_buffer(64)
    llama_cpp.llama_model_meta_val_str(model, b"general.architecture", name, len(name))
    places = (
        llama_cpp.llama_model_n_ctx_train(model) if name.value == b"gpt2" else 0
    )  # a table of which rows are read
    return llama_cpp.llama_model_size(model) - 4 * places * llama_cpp.llama_model_n_embd(model)


class Model:
    flash = True  # llama.cpp's own choice where it is left to choose

    def __init__(self, folder: str, threads: int, room: int) -> None:
        path = str(Path(folder) / "model.gguf")
        settings = {"n_threads": threads, "n_threads_batch": threads, "flash_attn": self.flash, "verbose": False}
        self._model = llama_cpp.Llama(path, n_ctx=room, **settings)
        self._all = functools.cache(lambda: llama_cpp.Llama(path, n_ctx=room, logits_all=True, **settings))

    def ids(self, text: str) -> list[int]:
        return self._model.tokenize(text.encode(), add_bos=False, special=True)

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

    def score(self, ids: list[int]) -> list[float]:
        model = self._all()
        model.reset()
        model.eval(ids)
        logits = model.scores[: len(ids) - 1].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        return (logits[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(logits).sum(axis=-1))).tolist()

    def _read(self, ids: list[int]) -> np.ndarray:
        self._model.reset()  # or it would go on from the text before
        self._model.eval(ids)
        return self._last()

    def _last(self) -> np.ndarray:
        logits = llama_cpp.llama_get_logits_ith(self._model.ctx, -1)
        return np.ctypeslib.as_array(logits, shape=(self._model.n_vocab(),))
