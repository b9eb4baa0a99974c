"""What users ran into once: each was wrong, and is held right here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers

import torchless
from torchless.cli import main
from torchless.errors import BundleError, ExportError
from torchless.export import export, parity
from torchless.manifest import MANIFEST
from torchless.quantize import quantize
from torchless.verify import verify

CopyOf = Callable[[Path], Path]


def test_gpt2s_fields_may_bear_their_second_names(gpt_checkpoint: Path, copy_of: CopyOf, tmp_path: Path) -> None:
    folder = copy_of(gpt_checkpoint)
    config = json.loads((folder / "config.json").read_text())
    heads = config["n_head"]
    tiny.change_json(folder / "config.json", n_head=..., num_attention_heads=heads)
    assert (export(folder, tmp_path / "second") / "model.onnx").read_bytes() == (
        export(gpt_checkpoint, tmp_path / "plain") / "model.onnx"
    ).read_bytes()
    tiny.change_json(folder / "config.json", n_head=heads)
    tiny.refused(folder, "num_attention_heads and n_head, which are two names for one thing", tmp_path)


def test_a_single_file_of_weights_wins_over_an_index(gpt_checkpoint: Path, copy_of: CopyOf, tmp_path: Path) -> None:
    folder = copy_of(gpt_checkpoint)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "other.safetensors"}}')
    assert export(folder, tmp_path / "out").is_dir()


@pytest.mark.parametrize("kind", [transformers.GPT2Model, transformers.BertForPreTraining])
def test_live_modules_without_logits_of_their_own_are_checked(kind: type, tmp_path: Path) -> None:
    if kind is transformers.GPT2Model:
        module = kind(transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=20))
    else:
        module = kind(
            transformers.BertConfig(
                num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=20, vocab_size=50,
                max_position_embeddings=20,
            )
        )  # fmt: skip
    torch.manual_seed(1)
    out = export(module.eval(), tmp_path / "out")
    record = json.loads((out / MANIFEST).read_text())["parity"]
    assert "torch" in record["against"] and record["max_abs_error"] < 1e-4


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin"])
def test_torchs_own_files_are_checked_whatever_their_name(
    name: str, gpt_model: torch.nn.Module, gpt_checkpoint: Path, copy_of: CopyOf, tmp_path: Path
) -> None:
    folder = copy_of(gpt_checkpoint)
    (folder / "model.safetensors").unlink()
    torch.save(gpt_model.state_dict(), folder / name)
    record = json.loads((export(folder, tmp_path / "out") / MANIFEST).read_text())["parity"]
    assert "torch" in record["against"] and record["max_abs_error"] < 1e-4


def test_a_manifest_beside_foreign_files_does_not_make_them_a_bundle(gpt_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / MANIFEST).write_text("hello")
    (tmp_path / "mine" / "thesis.doc").write_text("years of work")
    with pytest.raises(BundleError, match="something other than a bundle, so it is not overwritten"):
        export(gpt_checkpoint, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.doc").read_text() == "years of work"


def test_damaged_weights_are_not_quantized(gpt_bundle: Path, copy_of: CopyOf, tmp_path: Path) -> None:
    bundle = copy_of(gpt_bundle)
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    data[-1] ^= 1
    (bundle / "model.onnx.data").write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx\.data differs from its manifest"):
        quantize(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_verify_sees_nan_in_any_row(gpt_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchless import verify as module

    run = module.run_probe
    monkeypatch.setattr(module, "run_probe", lambda *a: [*run(*a)[:-1], np.full_like(run(*a)[-1], np.nan)])
    assert not verify(gpt_bundle).ok


def test_verify_against_another_checkpoint_fails(
    gpt_bundle: Path, bert_checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.save(tiny.gpt2(seed=99), tmp_path / "other", tiny.bpe())
    assert main(["verify", str(gpt_bundle), "--against", str(other)]) == 1
    assert "computes something else than" in capsys.readouterr().err
    with pytest.raises(ExportError, match="give the checkpoint that it was made from"):
        parity.compare(torchless.load(gpt_bundle).bundle, bert_checkpoints["fill-mask"])


def test_a_model_opened_by_a_relative_path_survives_a_change_of_directory(
    gpt_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(gpt_bundle.parent)
    with torchless.load(gpt_bundle.name) as model:
        os.chdir("/")
        assert model("The union", max_new_tokens=3).token_ids


def test_a_tiny_temperature_is_greedy_and_numpys_numbers_are_numbers(gpt: torchless.TextGeneration) -> None:
    greedy = gpt("The union", max_new_tokens=9).token_ids
    assert gpt("The union", max_new_tokens=9, temperature=1e-39, seed=1).token_ids == greedy
    sampled = gpt("The union", max_new_tokens=9, temperature=0.5, seed=1)
    assert gpt("The union", max_new_tokens=np.int64(9), temperature=np.float64(0.5), seed=np.int32(1)) == sampled


def test_doctor_runs_without_onnxruntime() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None; from torchless.cli import main; sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "pip install 'torchless[cpu]'" in done.stdout, done.stderr
