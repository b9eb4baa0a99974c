"""The models of benchmarks/encoder.py: one BERT-base checkpoint, and what each contender makes of it."""

from __future__ import annotations

import json
from typing import Any

import environments
from generation_models import NEIGHBOURS, Contender, Models

WORKER = NEIGHBOURS / "encoder_worker.py"
REFERENCE = "torch fp32"  # what all are compared with
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _ours(form: str, bits: int, source: str | None = None) -> Contender:
    return Contender(f"torchless {form}", "ours_encoder", environments.OURS, form, bits, source, converts_in=None)


def _optimum(name: str, form: str, source: str | None = None) -> Contender:
    bits = 8 if "int8" in name else 32
    return Contender(f"optimum-onnx {name}", "optimum_onnx_encoder", "optimum", form, bits, source)


# Sources of others, which take no part themselves.
SOURCES = (_optimum("fp32", "fp32"), _optimum("fused", "fused"))
CONTENDERS = {
    one.name: one
    for one in (
        Contender("torch fp32", "pytorch_encoder", "torch", "fp32", 32),
        _ours("fp32", 32),
        _ours("int8", 8, "torchless fp32"),
        Contender("OpenVINO int8", "openvino_encoder", "openvino", "int8", 8, converts_in="openvino-converter"),
        Contender("CTranslate2 int8", "ct2_encoder", "ctranslate2", "int8", 8, converts_in="ctranslate2-converter"),
        _optimum("int8", "tensor", "optimum-onnx fp32"),
        _optimum("int8 per channel", "channel", "optimum-onnx fp32"),
        _optimum("int8 fused", "fused int8", "optimum-onnx fused"),
        Contender("torch int8", "pytorch_int8_encoder", "torch", "int8", 8, converter="pytorch_encoder"),
    )
}


def models_in(folder: Any, places: Any) -> Models:
    known = CONTENDERS | {one.name: one for one in SOURCES}
    return Models(folder, places, known, WORKER)


def write_checkpoint(models: Models, quick: bool) -> None:
    """BERT-base of random weights (or a little one of two layers) as a Hugging Face folder, with made-up words."""
    import torch
    import transformers
    from tokenizers import BertWordPieceTokenizer

    torch.manual_seed(0)
    small: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4} if quick else {}
    config = transformers.BertConfig(**small)
    transformers.BertModel(config).save_pretrained(models.checkpoint)
    words = [*SPECIAL, *(f"word{number}" for number in range(config.vocab_size - len(SPECIAL)))]
    (models.checkpoint / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": config.max_position_embeddings}
    (models.checkpoint / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    BertWordPieceTokenizer(str(models.checkpoint / "vocab.txt")).save(str(models.checkpoint / "tokenizer.json"))
