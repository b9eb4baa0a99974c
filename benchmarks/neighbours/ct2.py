"""CTranslate2. It names tokens by their text, so a tokenizer stands beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ctranslate2


def convert(source: str, out: str, form: str) -> int:
    """A checkpoint, with weights in `form`: float32, int8."""
    import json

    from ctranslate2.converters import TransformersConverter

    TransformersConverter(source, copy_files=["tokenizer.json"]).convert(out, quantization=form)
    config = json.loads((Path(source) / "config.json").read_text())
    return (Path(out) / "model.bin").stat().st_size - 4 * config["n_positions"] * config["n_embd"]


class Model:
    def __init__(self, folder: str, threads: int, room: int) -> None:
        from tokenizers import Tokenizer

        self._model = ctranslate2.Generator(folder, intra_threads=threads, inter_threads=1)
        self._tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))

    def ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def generate(self, prompts: list[list[int]], new: int, heard: Callable[[int], None]) -> list[list[int]]:
        def callback(step: ctranslate2.GenerationStepResult) -> bool:
            heard(step.step + 1)
            return False

        made = self._model.generate_batch(
            [[self._tokenizer.id_to_token(token) for token in prompt] for prompt in prompts],
            max_length=new, min_length=new, include_prompt_in_result=False, callback=callback,
        )  # fmt: skip
        return [one.sequences_ids[0] for one in made]

    def logits(self, ids: list[int]) -> list[float]:
        import numpy as np

        tokens = [self._tokenizer.id_to_token(token) for token in ids]
        return np.asarray(self._model.forward_batch([tokens]))[0, -1].tolist()
