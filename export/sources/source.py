"""A checkpoint as every source hands it over."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchless.errors import ExportError
from torchless.export.blocks import Blocks
from torchless.export.weights import Weights

CONFIG, TOKENIZER, GENERATION = "config.json", "tokenizer.json", "generation_config.json"
SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Source:
    """A checkpoint, opened but not read: tensors are read one by one while the graph is written."""

    config: Mapping[str, Any]
    weights: Weights
    where: str
    files: Mapping[str, bytes]  # what goes into the bundle as it is: config, tokenizer, generation config
    folder: Path | None = None  # in Hugging Face layout
    module: Any = None  # the live torch module, where there is one
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    blocks: Mapping[str, Callable[[], Blocks]] = field(
        default_factory=dict
    )  # of tensors that are quantized already
    level: int = 4  # MatMulNBits' accuracy_level for those: 1 is exact, 4 rounds what they are multiplied by
    precision: str = "fp32"  # what most of those are, in the source's own word
    token_types: bool | None = None  # whether its tokenizer hands them to the model; None: it does not say

    @property
    def architectures(self) -> list[str]:
        """Names of Hugging Face classes: the checkpoint's, or the live module's class and those it derives from."""
        if self.module is not None:
            return [kind.__name__ for kind in type(self.module).__mro__]
        named = self.config.get("architectures")
        return [str(name) for name in named] if isinstance(named, list) else []


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an ExportError for a file that is missing, broken, or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing: is {path.parent} a Hugging Face checkpoint?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path} holds a {type(value).__name__}, not an object")
    return value
