"""OpenVINO, a second provider that is run for real: every family's standard graph, against torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from encoders import random_rows, torch_output
from other_python import python_with, run_with

import torchless
from torchless.bundle import read_bundle
from torchless.export import export
from torchless.quantize import quantize

TOLERANCE = 1e-4
WHEEL = "onnxruntime-openvino==1.24.1"
WORKER = Path(__file__).with_name("worker.py")
SMALL = dict(vocab_size=320, bos_token_id=0, eos_token_id=0, attn_implementation="eager")


def gpt1(kind: str, **config: Any) -> Any:
    made = transformers.OpenAIGPTConfig(vocab_size=320, n_positions=64, n_embd=32, n_layer=2, n_head=4, **config)
    return tiny.uneven(getattr(transformers, f"OpenAIGPT{kind}")(made), 5)


def llama(family: str, **config: Any) -> Any:
    sizes: Any = SMALL | dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    made = getattr(transformers, f"{family}Config")(**sizes | config)
    return tiny.uneven(getattr(transformers, f"{family}ForCausalLM")(made), 6)


DECODERS: dict[str, Any] = {
    "GPT-1": lambda: gpt1("LMHeadModel"),
    "GPT-1, relu, untied": lambda: gpt1("LMHeadModel", afn="relu", tie_word_embeddings=False),
    "GPT-2": tiny.gpt2,
    "GPT-2, three heads of 12": lambda: tiny.gpt2(n_embd=36, n_head=3),
    "GPT-2, seven heads of 5, untied": lambda: tiny.gpt2(n_embd=35, n_head=7, tie_word_embeddings=False),
    "GPT-2, past one chunk": lambda: tiny.gpt2(n_positions=600),
    "GPT-2, scaled by layer, relu": lambda: tiny.gpt2(
        scale_attn_by_inverse_layer_idx=True, activation_function="relu"
    ),
    "Llama": lambda: llama("Llama"),
    "Mistral with a window": lambda: llama("Mistral", sliding_window=7),
    "Qwen2": lambda: llama("Qwen2"),
    "Qwen3": lambda: llama("Qwen3", head_dim=12),
}
HEADS = {
    "Model": {},
    "ForMaskedLM": {},
    "ForSequenceClassification": {"num_labels": 3},
    "ForTokenClassification": {"num_labels": 5},
    "ForQuestionAnswering": {},
}
BERT_HEADS = {"text-classification": {"num_labels": 3}, "fill-mask": {}, "feature-extraction": {}}


def encoders() -> dict[str, Any]:
    made = {
        f"{family}, {kind}": tiny.encoder(family, kind, **config)
        for family in tiny.ENCODERS
        for kind, config in HEADS.items()
    }
    berts = BERT_HEADS | {"question-answering": {}, "token-classification": {"num_labels": 5}}
    made |= {f"bert, {task}": tiny.bert(task, **config) for task, config in berts.items()}
    odd = tiny.bert("text-classification", hidden_size=35, num_attention_heads=7, hidden_act="gelu_new")
    return made | {"bert, seven heads of 5": odd}


ENCODER_NAMES = [f"{family}, {kind}" for family in tiny.ENCODERS for kind in HEADS] + [
    *(f"bert, {task}" for task in (*BERT_HEADS, "question-answering", "token-classification")),
    "bert, seven heads of 5",
]


@pytest.fixture(scope="module")
def python() -> Path:
    return python_with(WHEEL)


@pytest.fixture(scope="module")
def answers(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """By name: torch's model, what it was given, and what OpenVINO gave; all of one process of the other Python."""
    folder = tmp_path_factory.mktemp("openvino")
    given: dict[str, tuple[Any, Any]] = {}
    tasks = []
    for name, make in DECODERS.items():
        model = make()
        length = 320 if "chunk" in name else 30
        ids = np.random.default_rng(len(name)).integers(0, model.config.vocab_size, length).tolist()
        given[name] = model, ids
        out = export(model, folder / str(len(tasks)), dialect="standard", check=False)
        tasks.append({"bundle": str(out), "ids": ids})
    for name, model in encoders().items():
        out = export(model, folder / str(len(tasks)), dialect="standard", check=False)
        rows = random_rows(model, read_bundle(out).manifest.context_length)
        given[name] = model, rows
        tasks.append({"bundle": str(out), "rows": rows})
    (folder / "tasks.json").write_text(json.dumps(tasks))
    result = run_with(python, WORKER, str(folder / "tasks.json"), str(folder), tree=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return {name: (*given[name], dict(np.load(folder / f"{number}.npz"))) for number, name in enumerate(given)}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_equals_torch_at_once_in_pieces_in_batches_and_greedily(name: str, answers: Any) -> None:
    model, ids, found = answers[name]
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    assert tiny.furthest(found["whole"], wanted) < TOLERANCE
    assert tiny.furthest(found["pieces"], wanted) < TOLERANCE
    starts = [len(ids) - 4, 1, len(ids) // 2]
    for ahead, logits in enumerate(found["ragged"]):
        assert tiny.furthest(logits, wanted[[start + ahead for start in starts]]) < TOLERANCE
    assert tiny.furthest(found["last"], wanted[[0, len(ids) - 1, 2]]) < TOLERANCE
    theirs = model.generate(torch.tensor([ids[:9]]), max_new_tokens=25, do_sample=False, pad_token_id=0)
    assert found["greedy"].tolist() == theirs[0, 9:].tolist()


@pytest.mark.parametrize("name", ENCODER_NAMES)
def test_an_encoder_equals_torch_alone_and_in_a_ragged_batch(name: str, answers: Any) -> None:
    model, rows, found = answers[name]
    for i, row in enumerate(rows):
        wanted = torch_output(model, row, {})
        for way in ("alone", "together"):
            assert tiny.furthest(found[f"{way} {i}"], wanted) < TOLERANCE


def test_int8_is_judged_and_run_under_an_older_onnxruntime(python: Path, tmp_path: Path) -> None:
    """1.24 ends the process where a product of int8 has no zero for its weights and the precise mode is on."""
    export(tiny.gpt2(n_embd=64), tmp_path / "gpt", tokenizer=tiny.bpe(), check=False)
    quantize(tmp_path / "gpt", tmp_path / "int8", recipe="int8")
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, torchless\n"
        "from torchless.exactness import products_are_exact\n"
        "try:\n"
        "    print(*torchless.load(sys.argv[1])([7, 200, 33], max_new_tokens=9).token_ids)\n"
        "except torchless.ProviderError:\n"
        "    assert not products_are_exact(precise=True)\n"
        "    print('refused')\n"
    )
    result = run_with(python, script, str(tmp_path / "int8"), tree=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    if result.stdout.strip() == "refused":
        pytest.skip(
            "before 1.25 onnxruntime multiplies int8 wrongly on processors with AMX, and the bundle is refused"
        )
    ours = torchless.load(tmp_path / "int8")([7, 200, 33], max_new_tokens=9).token_ids
    assert result.stdout.split() == [str(one) for one in ours]
