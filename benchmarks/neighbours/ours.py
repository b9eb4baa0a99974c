"""torchless. It is converted in the environment that runs the benchmark, which has torchless[export,quantize]."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torchless


def convert(source: str, out: str, form: str) -> int:
    """A checkpoint in float32, a GGUF file with its own blocks (`gguf`), or one of their bundles by a recipe."""
    from onnx_weights import read_by_a_token

    from torchless.export import export
    from torchless.quantize import quantize

    if form == "gguf":
        path = export(Path(source) / "model.gguf", out, check=False)
    else:
        path = export(source, out, check=False) if form == "fp32" else quantize(source, out, recipe=form)
    return read_by_a_token(path / "model.onnx")


class Model:
    def __init__(self, folder: str, threads: int, room: int) -> None:
        self._model = torchless.load(Path(folder), threads=threads)

    def ids(self, text: str) -> list[int]:
        return self._model.tokenizer.ids(text)

    def generate(self, prompts: list[list[int]], new: int, heard: Callable[[int], None]) -> list[list[int]]:
        def callback(ids: list[int]) -> bool:
            heard(len(ids))
            return False

        made = self._model(
            prompts,
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            callback=callback,
            batch_size=len(prompts),
        )
        return [one.token_ids for one in made]

    def logits(self, ids: list[int]) -> list[float]:
        decoder = self._model.decoder
        return decoder.extend(decoder.new_cache(), ids)[-1].tolist()

    def score(self, ids: list[int]) -> list[float]:
        return list(self._model.score(ids).logprobs)
