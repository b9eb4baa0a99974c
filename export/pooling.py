"""From token vectors to one sentence vector, inside the graph (Reimers and Gurevych, 2019)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from torchless.errors import ExportError
from torchless.export.builder import Builder, Value
from torchless.export.sources.source import read_json
from torchless.manifest import Pooling

MODES = ("mean", "cls", "max", "lasttoken")
# Before sentence-transformers 5.4 each mode was a field of its own.
FIELDS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


def pool(b: Builder, x: Value, mask: Value, pooling: Pooling) -> Value:
    """x [B,S,D], mask int64 [B,S] -> [B,D]."""
    if pooling.mode == "cls":
        sentence = b.op("Gather", x, b.constant(0, np.int64), axis=1)
    elif pooling.mode == "mean":
        weight = b.op("Unsqueeze", b.op("Cast", mask, to=1), b.constant([2], np.int64))  # [B,S,1]
        axis = b.constant([1], np.int64)
        total = b.op("ReduceSum", b.op("Mul", x, weight), axis, keepdims=0)
        count = b.op("ReduceSum", weight, axis, keepdims=0)
        sentence = b.op("Div", total, b.op("Max", count, b.constant(1e-9, np.float32)))
    elif pooling.mode == "max":
        padding = b.op("Not", b.op("Cast", b.op("Unsqueeze", mask, b.constant([2], np.int64)), to=9))  # [B,S,1]
        shown = b.op("Where", padding, b.constant(np.finfo(np.float32).min, np.float32), x)
        sentence = b.op("ReduceMax", shown, b.constant([1], np.int64), keepdims=0)
    elif pooling.mode == "lasttoken":
        count = b.op("ReduceSum", mask, b.constant([1], np.int64), keepdims=1)  # [B,1]
        sentence = b.op("GatherND", x, b.op("Sub", count, b.constant(1, np.int64)), batch_dims=1)
    else:
        raise ExportError(f"the pooling {pooling.mode!r} is not supported (supported: {', '.join(MODES)})")
    if not pooling.normalize:
        return sentence
    length = b.op("ReduceL2", sentence, b.constant([1], np.int64), keepdims=1)
    return b.op("Div", sentence, b.op("Max", length, b.constant(1e-12, np.float32)))


def read_pooling(folder: Path) -> tuple[Pooling, int | None] | None:
    """Pooling and the longest input that sentence-transformers' modules.json asks for, or None without one."""
    path = folder / "modules.json"
    if not path.is_file():
        return None
    modules = _read(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ExportError(f"{path} is no list of modules: download it again")
    pooling, limit = Pooling("mean", normalize=False), None
    for module in modules:
        kind, where = str(module.get("type", "")).rsplit(".", 1)[-1], folder / str(module.get("path", ""))
        if kind == "Transformer":
            limits = where / "sentence_bert_config.json"
            limit = _longest(limits) if limits.is_file() else None
        elif kind == "Pooling":
            pooling = Pooling(_mode(where / "config.json"), pooling.normalize)
        elif kind == "Normalize":
            pooling = Pooling(pooling.mode, normalize=True)
        else:
            raise ExportError(f"{path}: the module {kind!r} is not supported (Transformer, Pooling, Normalize)")
    return pooling, limit


def _longest(path: Path) -> int | None:
    """max_seq_length, in tokens; null leaves it to the model."""
    limit = read_json(path).get("max_seq_length")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ExportError(f"{path}: max_seq_length is {limit!r}, expected a whole number of 1 or more")
    return limit


def _mode(path: Path) -> str:
    """The one mode that a Pooling module has; several, whose vectors would be joined, are refused."""
    settings = read_json(path)
    if "pooling_mode" in settings:
        given = settings["pooling_mode"]
        modes = [str(mode) for mode in given] if isinstance(given, list) else [str(given)]
    else:
        modes = [
            FIELDS.get(name, name)
            for name, on in settings.items()
            if name.startswith("pooling_mode_") and on is True
        ]
    if len(modes) != 1 or modes[0] not in MODES:
        raise ExportError(
            f"{path}: pooling by {', '.join(modes) or 'no mode'} is not supported ({', '.join(MODES)})"
        )
    return modes[0]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} cannot be read ({error})") from None
