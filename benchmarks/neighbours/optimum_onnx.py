"""optimum-onnx: its own export with a cache, and onnxruntime's dynamic quantization of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytorch
from optimum.onnxruntime import ORTModelForCausalLM


def convert(source: str, out: str, form: str) -> int:
    """A checkpoint in float32 (`fp32`), or that export with int8 weights (`int8`)."""
    from onnx_weights import read_by_a_token

    if form == "fp32":
        from optimum.exporters.onnx import main_export

        main_export(source, out, task="text-generation-with-past", do_validation=False)
    else:
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
        ORTQuantizer.from_pretrained(source, file_name="model.onnx").quantize(config, save_dir=out)
    return read_by_a_token(_graph(out))


def _graph(folder: str) -> Path:
    (path,) = Path(folder).glob("*.onnx")
    return path


class Model(pytorch.Model):
    def _load(self, folder: str, threads: int) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return ORTModelForCausalLM.from_pretrained(
            folder, file_name=_graph(folder).name, use_cache=True, session_options=options
        )
