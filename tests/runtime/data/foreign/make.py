"""Exports tiny random models with optimum-onnx, and writes beside each what transformers answers.

usage: make.py OUT    (pip install "optimum-onnx==0.1.0" "transformers<4.58" torch onnxruntime)

gpt2-before holds the same gpt2 as optimum 1.23.3 with transformers 4.46.3 wrote it: main_export(…, legacy=True).
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from optimum.exporters.onnx import main_export

ENDS: dict[str, Any] = dict(bos_token_id=0, eos_token_id=0)
GPT: dict[str, Any] = ENDS | dict(vocab_size=320, n_positions=64, n_embd=16, n_layer=2, n_head=2)
SMALL: dict[str, Any] = dict(
    vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip
LLAMA = SMALL | dict(
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=0
)
NEO = dict(
    vocab_size=320, hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=64, window_size=5,
    attention_types=[[["global", "local"], 1]], **ENDS,
)  # fmt: skip
PAST = "text-generation-with-past"
MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "gpt2": ("GPT2", "LMHeadModel", GPT, PAST),
    "gpt-neo": ("GPTNeo", "ForCausalLM", NEO, PAST),
    "llama": ("Llama", "ForCausalLM", LLAMA | {"pad_token_id": None}, PAST),
    "gpt2-classifier": (
        "GPT2", "ForSequenceClassification", GPT | dict(n_layer=1, pad_token_id=0, num_labels=3),
        "text-classification",
    ),
    "bert-classifier": ("Bert", "ForSequenceClassification", SMALL | dict(num_labels=3), "text-classification"),
    "roberta-words": (
        "Roberta", "ForMaskedLM", SMALL | dict(max_position_embeddings=66, pad_token_id=1, type_vocab_size=1),
        "fill-mask",
    ),
    "bert-spans": ("Bert", "ForQuestionAnswering", SMALL, "question-answering"),
    "bert-choices": ("Bert", "ForMultipleChoice", SMALL, "multiple-choice"),
    "distilbert-tokens": (
        "DistilBert", "ForTokenClassification",
        dict(vocab_size=320, dim=16, n_layers=1, n_heads=2, hidden_dim=24, num_labels=5),
        "token-classification",
    ),
    "mpnet-features": (
        "MPNet", "Model", SMALL | dict(max_position_embeddings=66, pad_token_id=1), "feature-extraction"
    ),
}  # fmt: skip


def made(name: str) -> Any:
    prefix, kind, config, _ = MODELS[name]
    model = getattr(transformers, prefix + kind)(getattr(transformers, f"{prefix}Config")(**config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and parameter_name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.25 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def expected(model: Any, task: str) -> dict[str, Any]:
    """What transformers answers to three rows, each alone."""
    found: dict[str, Any] = {}
    for number, length in enumerate((40, 3, 17)):
        ids = np.random.default_rng(length).integers(4, 320, length)
        given = torch.tensor(ids[None])
        with torch.no_grad():
            answer = model(given[None] if task == "multiple-choice" else given)
        if "start_logits" in answer:
            output = torch.stack([answer.start_logits, answer.end_logits], -1)
        else:
            output = answer["last_hidden_state" if "last_hidden_state" in answer else "logits"]
        found |= {f"ids {number}": ids, f"output {number}": output[0].numpy()}
        if task == PAST:
            given = torch.tensor(ids[None, : min(length, 20)])
            new = model.generate(given, max_new_tokens=25, do_sample=False, pad_token_id=0, eos_token_id=None)
            found[f"greedy {number}"] = new[0, given.shape[1] :].numpy()
    return found


def main() -> None:
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    for name in MODELS:
        model, task, out = made(name), MODELS[name][3], Path(sys.argv[1]) / name
        with tempfile.TemporaryDirectory() as checkpoint:
            model.save_pretrained(checkpoint)
            main_export(checkpoint, out, task=task, do_validation=False)
        np.savez(out / "expected.npz", **expected(model, task))


if __name__ == "__main__":
    main()
