"""torch, by transformers' generate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.generation.streamers import BaseStreamer


def convert(source: str, out: str, form: str) -> int:
    """The checkpoint as it is."""
    Path(out).symlink_to(source, target_is_directory=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    return sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "wpe" not in name)


class Steps(BaseStreamer):
    """Counts the new tokens of each row; the first that `generate` puts here are the prompts."""

    def __init__(self, heard: Callable[[int], None]) -> None:
        self._heard, self._steps = heard, 0

    def put(self, value: Any) -> None:
        if self._steps:
            self._heard(self._steps)
        self._steps += 1

    def end(self) -> None:
        pass


def generate(model: Any, prompts: list[list[int]], new: int, heard: Callable[[int], None]) -> list[list[int]]:
    """transformers' loop, which optimum uses, too."""
    given = torch.tensor(prompts)
    with torch.inference_mode():
        made = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=new, do_sample=False,
            pad_token_id=0, streamer=Steps(heard),
        )  # fmt: skip
    return made[:, given.shape[1] :].tolist()


class Model:
    def __init__(self, folder: str, threads: int, room: int) -> None:
        torch.set_num_threads(threads)
        self._folder = folder
        self._model = self._load(folder, threads)
        self._model.generation_config.eos_token_id = None

    def _load(self, folder: str, threads: int) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    def ids(self, text: str) -> list[int]:
        return transformers.AutoTokenizer.from_pretrained(self._folder)(text)["input_ids"]

    def generate(self, prompts: list[list[int]], new: int, heard: Callable[[int], None]) -> list[list[int]]:
        return generate(self._model, prompts, new, heard)

    def logits(self, ids: list[int]) -> list[float]:
        given = torch.tensor([ids])
        with torch.inference_mode():
            return self._model(input_ids=given, attention_mask=torch.ones_like(given)).logits[0, -1].tolist()

    def score(self, ids: list[int]) -> list[float]:
        given = torch.tensor([ids])
        with torch.inference_mode():
            logits = self._model(input_ids=given, attention_mask=torch.ones_like(given)).logits[0, :-1]
        return logits.double().log_softmax(-1)[torch.arange(len(ids) - 1), given[0, 1:]].tolist()
