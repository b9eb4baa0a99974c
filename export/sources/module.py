"""A live torch module: one of transformers' classes, a subclass of one, or one that only adds a head."""

from __future__ import annotations

import json
from typing import Any

from torchless.errors import ExportError
from torchless.export.sources.chat_template import read_chat_template
from torchless.export.sources.source import CONFIG, GENERATION, TOKENIZER, Source
from torchless.export.sources.tokenizer import gives_token_types, read_tokenizer
from torchless.export.sources.torch_file import readers
from torchless.export.weights import Weights


def from_module(module: Any, tokenizer: object) -> Source:
    name = type(module).__name__
    try:
        config = json.loads(module.config.to_json_string(use_diff=False))
    except (AttributeError, TypeError, ValueError):
        raise ExportError(
            f"the .config of this {name} is a {type(module.config).__name__}: give a module with a config of "
            "transformers, such as GPT2Config"
        ) from None
    config["architectures"] = [name]
    files = {CONFIG: json.dumps(config, indent=2).encode()}
    generation = getattr(module, "generation_config", None)
    if generation is not None:
        files[GENERATION] = generation.to_json_string(use_diff=True).encode()
    if tokenizer is not None:
        files[TOKENIZER] = read_tokenizer(tokenizer, config.get("model_type"))
        files |= read_chat_template(tokenizer)
    weights = Weights(readers(module.state_dict()), name)
    return Source(config, weights, name, files, module=module, token_types=gives_token_types(tokenizer))
