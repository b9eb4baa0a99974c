"""The same model from every form that a checkpoint comes in gives the same bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import torchless
from torchless.bundle import read_bundle
from torchless.errors import ExportError
from torchless.export import export, parity
from torchless.hub_config import read_pooling
from torchless.verify import verify

CopyOf = Callable[[Path], Path]


def contents(bundle: Path) -> dict[str, bytes]:
    """Every file but the config, which differs in its dtype or architecture."""
    return {
        str(path.relative_to(bundle)): path.read_bytes()
        for path in sorted(bundle.rglob("*"))
        if path.is_file() and path.name not in ("config.json", "torchless.json", "generation_config.json")
    }


def test_two_exports_of_one_checkpoint_have_the_same_bytes(gpt_checkpoint: Path, tmp_path: Path) -> None:
    one, two = (export(gpt_checkpoint, tmp_path / name, dialect="all") for name in ("one", "two"))
    assert contents(one) == contents(two)
    assert (one / "torchless.json").read_bytes() == (two / "torchless.json").read_bytes()


def test_a_live_module_gives_the_bundle_of_its_folder(
    gpt_model: Any, gpt_bundle: Path, bert_models: dict[str, Any], bert_bundles: dict[str, Path], tmp_path: Path
) -> None:
    live = export(gpt_model, tmp_path / "gpt", dialect="all", tokenizer=tiny.bpe())
    assert contents(live) == contents(gpt_bundle)
    for task, model in bert_models.items():
        live = export(model, tmp_path / task, tokenizer=bert_bundles[task] / "tokenizer.json")
        assert contents(live) == contents(bert_bundles[task])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_precisions_equal_their_conversion_to_float32(
    dtype: torch.dtype, gpt_checkpoint: Path, copy_of: CopyOf, tmp_path: Path
) -> None:
    rounded = copy_of(gpt_checkpoint)
    tensors = load_file(rounded / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, rounded / "model.safetensors")
    given = contents(export(rounded, tmp_path / "given"))
    wide = {name: tensor.to(dtype).float() for name, tensor in tensors.items()}
    save_file(wide, rounded / "model.safetensors")
    assert given == contents(export(rounded, tmp_path / "wide"))
    assert any(not torch.equal(wide[name], tensors[name]) for name in wide) or dtype == torch.float64


def rename(folder: Path, *rules: tuple[str, str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    for pattern, replacement in rules:
        tensors = {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors")


def test_a_gpt2_without_the_prefix_and_with_stored_masks_is_the_same(
    gpt_checkpoint: Path, gpt_bundle: Path, copy_of: CopyOf, tmp_path: Path
) -> None:
    folder = copy_of(gpt_checkpoint)
    rename(folder, (r"^transformer\.", ""))
    tensors = load_file(folder / "model.safetensors")
    assert "wte.weight" in tensors
    masks = {"h.0.attn.bias": torch.ones(1, 1, 64, 64).tril().bool(), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(tensors | masks, folder / "model.safetensors")
    tiny.change_json(folder / "config.json", architectures=["GPT2Model"])
    assert contents(export(folder, tmp_path / "out", dialect="all")) == contents(gpt_bundle)


def test_a_second_copy_of_the_tied_head_is_left_out(
    gpt_checkpoint: Path, gpt_bundle: Path, copy_of: CopyOf, tmp_path: Path
) -> None:
    folder = copy_of(gpt_checkpoint)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert contents(export(folder, tmp_path / "out", dialect="all")) == contents(gpt_bundle)


@pytest.mark.parametrize("task", list(tiny.BERTS))
def test_a_bert_with_the_names_of_old_days_is_the_same(
    task: str, bert_checkpoints: dict[str, Path], bert_bundles: dict[str, Path], copy_of: CopyOf, tmp_path: Path
) -> None:
    folder = copy_of(bert_checkpoints[task])
    rename(folder, (r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta"))
    assert any(name.endswith(".gamma") for name in load_file(folder / "model.safetensors"))
    assert contents(export(folder, tmp_path / "out", check=False)) == contents(bert_bundles[task])


def test_shards_and_a_torch_file_give_the_bundle_of_the_one_file(
    gpt_model: Any, gpt_checkpoint: Path, gpt_bundle: Path, copy_of: CopyOf, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    gpt_model.save_pretrained(shards, max_shard_size="40KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert contents(export(shards, tmp_path / "a", dialect="all", tokenizer=gpt_checkpoint)) == contents(gpt_bundle)
    folder = copy_of(gpt_checkpoint)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert contents(export(folder, tmp_path / "b", dialect="all")) == contents(gpt_bundle)


def test_a_task_that_is_asked_for_leaves_the_checkpoints_own_head_out(
    bert_checkpoints: dict[str, Path], bert_models: dict[str, Any], tmp_path: Path
) -> None:
    out = export(bert_checkpoints["text-classification"], tmp_path / "out", task="feature-extraction")
    with torchless.load(out) as ours:
        ids = torch.tensor([ours.tokenizer.ids("the union is strong")])
        with torch.no_grad():
            tokens = bert_models["text-classification"].bert(ids).last_hidden_state[0]
        assert tiny.furthest(ours("the union is strong"), tokens.mean(0).numpy()) < 1e-4


def test_special_tokens_come_from_the_generation_config_then_the_config_then_the_tokenizer(
    gpt_checkpoint: Path, bert_bundles: dict[str, Path], copy_of: CopyOf, tmp_path: Path
) -> None:
    folder = copy_of(gpt_checkpoint)
    tiny.change_json(folder / "config.json", eos_token_id=5, bos_token_id=50_256, pad_token_id=-1)
    tiny.change_json(folder / "generation_config.json", eos_token_id=[7, 9], bos_token_id=..., pad_token_id=...)
    assert read_bundle(export(folder, tmp_path / "out")).manifest.special_tokens == {"eos": [7, 9]}
    found = read_bundle(bert_bundles["fill-mask"]).manifest.special_tokens
    assert found == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


@pytest.mark.parametrize(
    ("modules", "pooling", "expected"),
    [
        (["Pooling"], {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32}, ("mean", False)),
        (
            ["Pooling", "Normalize"],
            {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": False},
            ("cls", True),
        ),
        (["Pooling", "Normalize"], {"pooling_mode": "mean"}, ("mean", True)),
    ],
)
def test_pooling_and_limit_come_from_modules_json(
    modules: list[str], pooling: dict[str, Any], expected: tuple[str, bool], tmp_path: Path
) -> None:
    listed = [{"type": f"sentence_transformers.models.{name}", "path": name} for name in ["Transformer", *modules]]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    for name, content in {
        "Transformer/sentence_bert_config": {"max_seq_length": 17},
        "Pooling/config": pooling,
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = read_pooling(tmp_path, ExportError)
    assert found is not None
    assert (found[0].mode, found[0].normalize, found[1]) == (*expected, 17)


@pytest.mark.parametrize("dialect", ["fused", "standard", "all"])
def test_without_torch_an_export_is_checked_against_the_other_dialect(
    dialect: Any, gpt_checkpoint: Path, bert_checkpoints: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(parity, "has_torch", lambda: False)
    for name, folder in {"gpt": gpt_checkpoint, **bert_checkpoints}.items():
        out = export(folder, tmp_path / name, dialect=dialect)
        record = read_bundle(out).manifest.parity
        assert record is not None
        assert "dialect in onnxruntime (torch was not installed)" in record["against"]
        assert record["max_abs_error"] < 1e-4
        assert record["max_abs_error"] > 0 or dialect != "fused"  # else a graph is compared with itself
        assert verify(out).ok


def test_with_torch_the_record_says_so_and_holds_what_verify_repeats(gpt_bundle: Path) -> None:
    record = read_bundle(gpt_bundle).manifest.parity
    assert record is not None
    assert re.fullmatch(r"transformers \S+ on torch \S+", record["against"])
    assert 0 < record["max_abs_error"] < 1e-4
    again = verify(gpt_bundle)
    assert again.ok
    assert set(again.errors) == {"model.onnx", "model.standard.onnx"}


def test_an_export_that_computes_something_else_is_refused(
    gpt_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchless.export.families.gpt2 import GPT2Config

    monkeypatch.setattr(GPT2Config, "scale", lambda self, layer: 0.1)
    tiny.refused(gpt_checkpoint, r"model\.onnx differs from transformers .* by [\d.e-]+", tmp_path)


def test_a_reference_that_is_not_a_number_never_counts_as_equal(
    gpt_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_torch = parity.run_torch
    monkeypatch.setattr(parity, "run_torch", lambda *a, **b: [row * np.nan for row in run_torch(*a, **b)])
    tiny.refused(gpt_checkpoint, r"model\.onnx differs from transformers .* by inf", tmp_path)
