"""OpenVINO, quantized by NNCF: activations in fixed ranges, found on random tokens like those that are read.

What stays in float is computed as OpenVINO chooses: in bfloat16 where the processor multiplies it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino

TEXTS = 64  # from which the ranges are found


def convert(source: str, out: str, form: str) -> None:
    """A checkpoint in float32 (`fp32`) or int8, as NNCF does it for transformers: SmoothQuant and fixed ranges."""
    import nncf
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(source, add_pooling_layer=False).eval()
    generator = np.random.default_rng(1)
    rows = [feeds(generator.integers(5, model.config.vocab_size, (1, 128))) for _ in range(TEXTS)]
    example = {name: torch.from_numpy(array) for name, array in rows[0].items()}
    with torch.inference_mode():
        graph = openvino.convert_model(model, example_input=example)
    if form == "int8":
        graph = nncf.quantize(
            graph, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows)
        )
    openvino.save_model(graph, Path(out) / "model.xml", compress_to_fp16=False)


def feeds(ids: Any) -> dict[str, Any]:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


class Model:
    def __init__(self, folder: str, threads: int) -> None:
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._model = openvino.Core().compile_model(Path(folder) / "model.xml", "CPU", settings)

    def hidden(self, ids: Any) -> Any:
        return self._model(feeds(ids))[0]
