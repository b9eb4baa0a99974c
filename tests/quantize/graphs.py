"""Small graphs written by the exporter's builder, and a session that is exact on this processor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from torchless.exactness import PRECISE_MODE, signed_int8_saturates
from torchless.export.builder import CONTRIB, Builder
from torchless.quantize.draft import Draft
from torchless.quantize.recipes import RECIPES, Columns
from torchless.quantize.rewrite import Report, rewrite

NONE: Any = None


def uneven(*shape: int, seed: int = 3) -> np.ndarray:
    """Random float32 of very unlike rows and columns, no two values the same."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=shape) * np.exp(generator.normal(size=(*shape[:-1], 1)))
    return (values * np.exp(generator.normal(size=shape[-1]))).astype(np.float32)


def product(folder: Path, weight: np.ndarray, *, last: bool = False) -> Path:
    """y [M,N] = x [M,K] @ weight; the graph's last product, or one inside."""
    b = Builder("fused")
    y = b.op("MatMul", b.input("x", np.float32, ["M", weight.shape[0]]), b.weight("w", weight))
    b.output("y", y if last else b.op("Identity", y), np.float32, ["M", weight.shape[1]])
    return save(b, folder)


def tied(folder: Path, table: np.ndarray) -> Path:
    """The embedding of `input_ids` [B,S], and the scores of x [M,D] by the same table [V,D]."""
    b = Builder("fused")
    weight = b.weight("wte", table)
    ids, x = b.input("input_ids", np.int64, ["B", "S"]), b.input("x", np.float32, ["M", table.shape[1]])
    b.output("e", b.op("Gather", weight, ids, axis=0), np.float32, ["B", "S", table.shape[1]])
    b.output("logits", b.op("FusedMatMul", x, weight, domain=CONTRIB, transB=1), np.float32, ["M", len(table)])
    return save(b, folder)


def save(b: Builder, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    b.save(folder, "model.onnx", "model.onnx.data")
    return folder / "model.onnx"


def rewritten(source: Path, recipe: str = "int8") -> tuple[Path, Report]:
    """The quantized graph beside its source, and the report. Nothing is measured: rows have their own scales."""
    target = source.parent / recipe / source.name
    target.parent.mkdir()
    draft = Draft(source, target)
    body = Columns() if recipe == "int8" else RECIPES[recipe].body
    report = rewrite(draft, dataclasses.replace(RECIPES[recipe], migrate=None, body=body), NONE)
    draft.save()
    return target, report


def run(path: Path, **feeds: np.ndarray) -> dict[str, Any]:
    """All outputs by name, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry(PRECISE_MODE, str(int(signed_int8_saturates())))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
