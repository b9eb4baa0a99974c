"""Write a trained model as a folder that transformers and torchless read: config, weights, tokenizer."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedModel


def write_checkpoint(model: PreTrainedModel, tokenizer: Tokenizer, settings: dict, out: Path) -> None:
    """Write config.json, model.safetensors in float16, tokenizer.json and tokenizer_config.json into `out`.

    `settings` names the special tokens and the context length for tokenizer_config.json. Other files in
    `out`, such as the model card, stay; each file is complete before it replaces an older one.
    """
    half = type(model)(model.config)
    half.load_state_dict(model.state_dict())
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        part = Path(folder)
        half.half().save_pretrained(part)
        tokenizer.save(str(part / "tokenizer.json"), pretty=False)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **settings,
        }
        (part / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        for path in sorted(part.iterdir()):
            path.chmod(0o644)
            os.replace(path, out / path.name)
