"""nanoGPT's ckpt.pt: a GPT-2 whose matrices lie the other way, with the exact GELU, and with or without biases.

What its train.py saves: `model` (the state dict) and `model_args` (the model's sizes), beside the optimizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from torchless.errors import ExportError
from torchless.export.sources.source import CONFIG, TOKENIZER, Source
from torchless.export.sources.tokenizer import brings_tokenizer, read_tokenizer
from torchless.export.sources.torch_file import load, state_of
from torchless.export.weights import Read, Weights

CHECKPOINT = "ckpt.pt"
COMPILED = "_orig_mod."  # what torch.compile puts before every name
END = "<|endoftext|>"  # between the texts that a model with GPT-2's encoding was trained on


def from_nanogpt(path: Path, tokenizer: object) -> Source:
    """The checkpoint with GPT-2's names and config. Raises ExportError."""
    held = load(path)
    if not isinstance(held, dict) or not all(isinstance(held.get(name), dict) for name in ("model", "model_args")):
        raise ExportError(f"{path} holds no model with its model_args: is it a checkpoint of nanoGPT's train.py?")
    config = _config(path, held["model_args"])
    if tokenizer is None and not brings_tokenizer(path.parent):
        raise ExportError(
            f"{path} brings no tokenizer: pass tokenizer= (--tokenizer) with the meta.pkl of its data set, or with "
            "a folder that holds GPT-2's vocab.json and merges.txt"
        )
    content = read_tokenizer(path.parent if tokenizer is None else tokenizer, "gpt2")
    fast = FastTokenizer.from_str(content.decode("utf-8"))
    if fast.get_vocab_size() > int(config["vocab_size"]):
        raise ExportError(
            f"the tokenizer has {fast.get_vocab_size():,} tokens, {path} has {config['vocab_size']:,}: "
            "they are not of one checkpoint"
        )
    end = fast.token_to_id(END)
    config |= {"bos_token_id": end, "eos_token_id": end}
    files = {CONFIG: json.dumps(config, indent=2).encode(), TOKENIZER: content}
    tensors = {
        name.removeprefix(COMPILED): _turned(name, read) for name, read in state_of(path, held["model"]).items()
    }
    return Source(config, Weights(tensors, str(path)), str(path), files)


def _config(path: Path, args: Mapping[str, Any]) -> dict[str, Any]:
    """model_args under the names of GPT-2's config."""
    names = {"vocab_size": "vocab_size", "n_positions": "block_size"}
    names |= {name: name for name in ("n_embd", "n_layer", "n_head")}
    sizes = {name: args.get(theirs) for name, theirs in names.items()}
    if wrong := [names[name] for name, size in sizes.items() if type(size) is not int]:
        raise ExportError(f"{path}: model_args has no whole number {wrong[0]}: is it a checkpoint of nanoGPT's?")
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **sizes,
        "bias": args.get("bias", True),
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    }


def _turned(name: str, read: Read) -> Read:
    """GPT-2 keeps the matrices of its blocks as [inputs, outputs], nanoGPT as torch's Linear does."""
    if re.search(r"\.(attn|mlp)\.c_\w+\.weight$", name):
        return lambda: read().T
    return read
