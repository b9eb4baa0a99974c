"""A model and one that is a little off, as quantization would make it: in torch, and as bundles that are open."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

import torchless
from torchless.export import export
from torchless.quantize.data import Example


@dataclass(frozen=True)
class Pair:
    """torch: both models. ours: both, with the names that measure_quality takes."""

    torch: list[Any]
    ours: list[tuple[str, Any]]


def pair(model: Any, tokenizer: Tokenizer, folder: Path, noise: float = 0.03) -> Pair:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(noise * torch.randn(weight.shape, generator=generator))
    both = [model, other]
    bundles = [
        export(one, folder / name, tokenizer=tokenizer) for one, name in zip(both, ("fp32", "off"), strict=True)
    ]
    return Pair(both, [(bundle.name, torchless.load(bundle)) for bundle in bundles])


def examples(*texts: str, **fields: list[Any]) -> list[Example]:
    """One of each text, with a value of each field."""
    return [
        Example(f"data, line {i + 1}", text, **{name: values[i] for name, values in fields.items()})
        for i, text in enumerate(texts)
    ]
