"""What models must share to be compared: InputError where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchless.errors import InputError
from torchless.model import Model
from torchless.quantize.data import Example


def same_labels(models: Sequence[Any]) -> tuple[str, ...]:
    """The labels of all."""
    first: tuple[str, ...] = models[0].labels
    for model in models[1:]:
        if model.labels != first:
            raise _unlike(model, models[0], f"have other labels ({', '.join(model.labels)}; {', '.join(first)})")
    return first


def same_tokens(models: Sequence[Model], examples: Sequence[Example]) -> list[list[int]]:
    """The ids of each example's text, which are those of all."""
    first = models[0]
    ids = [list(first.tokenizer.encode(example.given).ids) for example in examples]
    for model in models[1:]:
        same = model.bundle.manifest.vocab_size == first.bundle.manifest.vocab_size
        if not same or any(
            model.tokenizer.encode(example.given).ids != one for example, one in zip(examples, ids, strict=True)
        ):
            raise _unlike(model, first, "split texts into other tokens")
    return ids


def same_dimension(models: Sequence[Any]) -> None:
    for model in models[1:]:
        if model.dimension != models[0].dimension:
            raise _unlike(
                model, models[0], f"make vectors of {model.dimension:,} and {models[0].dimension:,} numbers"
            )


def _unlike(model: Model, first: Model, how: str) -> InputError:
    return InputError(f"{model.bundle.path} and {first.bundle.path} {how}: give bundles of one model")
