"""optimum-onnx: its own export, and onnxruntime's dynamic quantization of that."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytorch_encoder
from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTOptimizer, ORTQuantizer
from optimum.onnxruntime.configuration import AutoOptimizationConfig, AutoQuantizationConfig


def convert(source: str, out: str, form: str) -> None:
    """A checkpoint in float32 (`fp32`), that export with attention and norms fused (`fused`), or either in int8.

    `tensor` is what `optimum-cli onnxruntime quantize --avx512_vnni` does, `channel` adds --per_channel.
    """
    if form == "fp32":
        from optimum.exporters.onnx import main_export

        main_export(source, out, task="feature-extraction", do_validation=False)
    elif form == "fused":
        model = ORTModelForFeatureExtraction.from_pretrained(source)
        ORTOptimizer.from_pretrained(model).optimize(AutoOptimizationConfig.O2(), save_dir=out)
    elif form == "fused int8":  # onnxruntime's own function: optimum's wrapper has no way to tell the type
        from onnxruntime.quantization import QuantType, quantize_dynamic

        Path(out).mkdir()
        shutil.copy(Path(source) / "config.json", out)
        (graph,) = Path(source).glob("*.onnx")
        target = Path(out) / "model.onnx"
        quantize_dynamic(graph, target, weight_type=QuantType.QInt8, extra_options={"DefaultTensorType": 1})
    else:
        (graph,) = Path(source).glob("*.onnx")
        quantizer = ORTQuantizer.from_pretrained(source, file_name=graph.name)
        config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=form == "channel")
        quantizer.quantize(config, save_dir=out)


class Model(pytorch_encoder.Model):
    def _load(self, folder: str, threads: int) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        (graph,) = Path(folder).glob("*.onnx")
        return ORTModelForFeatureExtraction.from_pretrained(folder, file_name=graph.name, session_options=options)
