"""A checkpoint whose files are missing, broken or hostile is refused by name, and no code in it is ever run."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file, save_file

CopyOf = Callable[[Path], Path]


@pytest.fixture
def gpt2(gpt_checkpoint: Path, copy_of: CopyOf) -> Path:
    return copy_of(gpt_checkpoint)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def spoil(value: float) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors["transformer.h.1.mlp.c_proj.weight"][3, 5] = value

    return change


TENSORS: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("one is NaN", spoil(np.nan), r"h\.1\.mlp\.c_proj\.weight holds NaN or infinity: the checkpoint is damaged"),
    ("one is infinite", spoil(-np.inf), r"h\.1\.mlp\.c_proj\.weight holds NaN or infinity"),
    ("one is missing", lambda t: t.pop("transformer.h.0.ln_1.bias"), r"lacks the tensor h\.0\.ln_1\.bias"),
    ("one is unknown", lambda t: t.update(extra=np.ones(2, np.float32)), "no place in the graph: extra"),
    (
        "one is transposed",
        lambda t: t.update({"transformer.h.0.mlp.c_fc.weight": np.ones((128, 32), np.float32)}),
        r"h\.0\.mlp\.c_fc\.weight has shape \[128, 32\], config\.json makes it \[32, 128\]",
    ),
    (
        "one is of integers",
        lambda t: t.update({"transformer.ln_f.bias": np.ones(32, np.int8)}),
        r"ln_f\.bias is I8: only float tensors of 16, 32 or 64 bits",
    ),
    (
        "a tied head differs from its embedding",
        lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1}),
        r"config\.json ties lm_head\.weight to another tensor, but their values differ",
    ),
]


@pytest.mark.parametrize(("change", "match"), [row[1:] for row in TENSORS], ids=[row[0] for row in TENSORS])
def test_tensors_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, Any]], object], match: str, gpt2: Path, tmp_path: Path
) -> None:
    rewrite(gpt2, change)
    tiny.refused(gpt2, match, tmp_path)
    tiny.refused(gpt2, match, tmp_path, check=False)


def test_an_untied_copy_of_the_masked_heads_matrix_is_refused(
    bert_checkpoints: dict[str, Path], copy_of: CopyOf, tmp_path: Path
) -> None:
    folder = copy_of(bert_checkpoints["fill-mask"])
    words = load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    rewrite(folder, lambda t: t.update({"cls.predictions.decoder.weight": words * 2}))
    tiny.refused(
        folder, r"ties cls\.predictions\.decoder\.weight to another tensor, but their values", tmp_path, check=False
    )


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


F8 = {"transformer.wte.weight": {"dtype": "F8_E4M3", "shape": [320, 32], "data_offsets": [0, 10240]}}
BROKEN: list[tuple[str, bytes | None, str]] = [
    ("empty", b"", "not a sound safetensors file"),
    ("three bytes", b"\x01\0\0", "not a sound safetensors file"),
    ("no JSON", safetensors(b"{{{{"), "not a sound safetensors file"),
    ("a header as long as the world", safetensors({}, length=2**63), "not a sound safetensors file"),
    ("a header longer than the file", safetensors({}, length=1000), "not a sound safetensors file"),
    (
        "a tensor past the end",
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 8),
        "not a sound safetensors file",
    ),
    ("half of it", None, "not a sound safetensors file"),
    ("a pickle", pickle.dumps({"a": 1}), "not a sound safetensors file"),
    ("8-bit floats", safetensors(F8, b"\0" * 10240), r"wte\.weight is F8_E4M3: only float tensors of 16"),
]


@pytest.mark.parametrize(("content", "match"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_safetensors_file_is_refused_with_its_name(
    content: bytes | None, match: str, gpt2: Path, tmp_path: Path
) -> None:
    path = gpt2 / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50_000] if content is None else content)
    tiny.refused(gpt2, match, tmp_path)


class Mark:
    """Unpickling it would create a file: proof that code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model.pt"])
def test_code_in_a_pickled_checkpoint_is_never_run(name: str, gpt2: Path, tmp_path: Path) -> None:
    (gpt2 / "model.safetensors").unlink()
    torch.save({"wte.weight": torch.ones(2), "x": Mark(tmp_path / "ran")}, gpt2 / name)
    tiny.refused(gpt2, f"{re.escape(name)} cannot be read with weights_only=True .*model.safetensors", tmp_path)
    with (gpt2 / name).open("wb") as stream:
        pickle.dump(Mark(tmp_path / "ran"), stream)
    tiny.refused(gpt2, "weights_only=True", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_torch_file_that_is_no_state_dict_is_refused(gpt2: Path, tmp_path: Path) -> None:
    (gpt2 / "model.safetensors").unlink()
    torch.save([torch.ones(2)], gpt2 / "pytorch_model.bin")
    tiny.refused(gpt2, "holds a list, not a state dict: save module.state_dict()", tmp_path)


INDEXES: list[tuple[object, str]] = [
    ({"weight_map": {"a": "../secret.safetensors"}}, "names a file outside the folder"),
    ({"weight_map": {"a": "/etc/passwd"}}, "names a file outside the folder"),
    ({"weight_map": {"a": "sub/model.safetensors"}}, "names a file outside the folder"),
    ({"weight_map": {"a": "..\\secret.safetensors"}}, "names a file outside the folder"),
    ({"weight_map": {"a": ".."}}, "names a file outside the folder"),
    ({"weight_map": {"a": "C:secret"}}, "names a file outside the folder"),
    ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors is not a sound safetensors file"),
    ({"weight_map": {"a": 5}}, "index.json has no weight_map from tensors to files"),
    ({"weight_map": ["a"]}, "index.json has no weight_map from tensors to files"),
    ({}, "index.json has no weight_map from tensors to files"),
    ([], "index.json holds a list, not an object"),
]


@pytest.mark.parametrize(("index", "match"), INDEXES, ids=lambda value: str(value)[:40])
def test_an_index_of_shards_that_leaves_the_folder_or_lies_is_refused(
    index: object, match: str, gpt2: Path, tmp_path: Path
) -> None:
    (gpt2 / "model.safetensors").unlink()
    (gpt2 / "model.safetensors.index.json").write_text(json.dumps(index))
    tiny.refused(gpt2, match, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("config.json", None, "config.json is missing: is .* a Hugging Face checkpoint"),
        ("config.json", b"{", "config.json cannot be read"),
        ("config.json", b"[1]", "config.json holds a list, not an object"),
        ("config.json", b"\xff\xfe", "config.json cannot be read"),
        ("config.json", b"[" * 200_000, "config.json cannot be read"),
        ("generation_config.json", b"nonsense", "generation_config.json cannot be read"),
        ("tokenizer.json", None, "tokenizer.json is missing: write it with AutoTokenizer"),
        ("tokenizer.json", b"{}", "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", b"\xff", "tokenizer.json is not a tokenizer"),
        ("model.safetensors", None, "holds no model.safetensors and no pytorch_model.bin: is it a checkpoint"),
    ],
)
def test_a_file_that_is_missing_or_broken_is_named(
    name: str, content: bytes | None, match: str, gpt2: Path, tmp_path: Path
) -> None:
    (gpt2 / name).unlink()
    if content is not None:
        (gpt2 / name).write_bytes(content)
    tiny.refused(gpt2, match, tmp_path)
