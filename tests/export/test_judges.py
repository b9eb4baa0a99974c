"""The standard dialect's graphs as onnx.reference and OpenVINO read them: two judges that are not onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import judges
import numpy as np
import pytest
import tiny
import torch
import transformers
from encoders import Row, random_rows, torch_output
from other_python import python_with, run_with

from torchless.bundle import read_bundle
from torchless.export import export

TOLERANCE = 1e-4
OPENVINO = "openvino==2026.4.1"
STARTS = [9, 1, 4]
IDS = [7, 200, 33, 5, 90, 64, 311, 18, 2, 77, 150, 41, 260, 9]


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
        attn_implementation="eager",
    )  # fmt: skip
    return tiny.uneven(transformers.LlamaForCausalLM(config), 6)


DECODERS: dict[str, Any] = {"GPT-2": tiny.gpt2, "Llama": llama}


def padded(rows: list[Row]) -> dict[str, Any]:
    """One batch, whose padding would change the answer if it were seen."""
    shape = len(rows), max(len(ids) for ids, _ in rows)
    ids, mask, types = np.full(shape, 9), np.zeros(shape, int), np.ones(shape, int)
    for i, (row, segments) in enumerate(rows):
        ids[i, : len(row)], types[i, : len(row)], mask[i, : len(row)] = row, segments, 1
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: value.tolist() for name, value in given.items()}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    made = {name: make() for name, make in DECODERS.items()}
    return made | {"BERT": tiny.bert("text-classification", num_labels=3)}


@pytest.fixture(scope="module")
def tasks(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        out = export(model, tmp_path_factory.mktemp("judged") / "bundle", dialect="standard", check=False)
        bundle = read_bundle(out)
        found[name] = {"graph": str(bundle.file(bundle.manifest.graphs[0].file))}
        if cache := bundle.manifest.cache:
            slots = 16  # more than are written
            found[name] |= {
                "ids": IDS,
                "starts": STARTS,
                "cache": [cache.layers, cache.heads, slots, cache.head_size],
            }
        else:
            found[name] |= {"feeds": padded(random_rows(model, bundle.manifest.context_length))}
    return found


@pytest.fixture(scope="module", params=["onnx.reference", "OpenVINO"])
def answers(request: Any, tasks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if request.param == "onnx.reference":
        return {name: judges.answer(judges.reference, task) for name, task in tasks.items()}
    python, folder = python_with(OPENVINO), tmp_path_factory.mktemp("openvino")
    (folder / "tasks.json").write_text(json.dumps(list(tasks.values())))
    result = run_with(python, Path(judges.__file__), str(folder / "tasks.json"), str(folder), tree=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return {name: dict(np.load(folder / f"{number}.npz")) for number, name in enumerate(tasks)}


@pytest.mark.parametrize("name", DECODERS)
def test_a_ragged_prompt_and_steps_of_one_and_of_several_tokens_equal_torch(
    name: str, answers: dict[str, Any], models: dict[str, Any]
) -> None:
    with torch.no_grad():
        wanted = models[name](torch.tensor([IDS])).logits[0].numpy()
    found = answers[name]
    for row, one, start in zip(found["first"], found["one"], STARTS, strict=True):
        assert tiny.furthest(row[:start], wanted[:start]) < TOLERANCE
        assert tiny.furthest(one, wanted[start : start + 1]) < TOLERANCE
    past = STARTS[0] + 1
    assert tiny.furthest(found["several"][0], wanted[past : past + judges.AHEAD]) < TOLERANCE


def test_a_classifiers_padded_batch_equals_torch_row_by_row(
    answers: dict[str, Any], models: dict[str, Any], tasks: dict[str, Any]
) -> None:
    rows = random_rows(models["BERT"], 40)
    assert [len(ids) for ids, _ in rows] == [sum(mask) for mask in tasks["BERT"]["feeds"]["attention_mask"]]
    for logits, row in zip(answers["BERT"]["logits"], rows, strict=True):
        assert tiny.furthest(logits, torch_output(models["BERT"], row, {})) < TOLERANCE
