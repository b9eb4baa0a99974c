"""A bundle that is damaged, hostile or too new is a BundleError that names the file and what to do."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

import torchless
from torchless import BundleError
from torchless.bundle import LARGEST_MANIFEST, read_bundle
from torchless.manifest import MANIFEST
from torchless.verify import verify
from torchless.writing import seal

CopyOf = Callable[[Path], Path]


@pytest.fixture
def bundle(gpt_bundle: Path, copy_of: CopyOf) -> Path:
    return copy_of(gpt_bundle)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def refused(bundle: Path, match: str, **options: Any) -> None:
    with pytest.raises(BundleError, match=match):
        torchless.load(bundle, **options)


def test_a_sound_bundle_opens_and_lists_what_it_holds(gpt_bundle: Path) -> None:
    opened = read_bundle(gpt_bundle, verify=True)
    assert set(opened.manifest.files) == {
        "config.json", "generation_config.json", "model.onnx", "model.onnx.data", "model.standard.onnx",
        "model.standard.onnx.data", "tokenizer.json",
    }  # fmt: skip
    on_disk = {path.name: path.stat().st_size for path in gpt_bundle.iterdir() if path.name != MANIFEST}
    assert opened.size == sum(on_disk.values())
    assert opened.manifest.from_json(opened.manifest.to_json()) == opened.manifest


@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_truncated_graph_is_named_with_both_sizes_and_the_remedy(bundle: Path, kept: int) -> None:
    whole = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(whole[:kept])
    left = re.escape(f"{len(whole[:kept]):,}")
    refused(bundle, rf"model\.onnx has {left} bytes, its manifest says {len(whole):,}: copy .* or export it again")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "config.json", "generation_config.json"])
def test_a_flipped_byte_in_a_small_file_is_found_by_its_hash(bundle: Path, name: str) -> None:
    flip(bundle / name, at=20)
    refused(bundle, rf"{re.escape(name)} differs from its manifest \(sha256 .*\): copy the bundle again or export")


def test_a_flipped_byte_in_the_weights_is_found_when_asked_for(bundle: Path) -> None:
    flip(bundle / "model.onnx.data", at=-1)
    torchless.load(bundle).close()  # half the start-up time would go into hashing them
    refused(bundle, r"model\.onnx\.data differs from its manifest", verify=True)
    with pytest.raises(BundleError, match=r"model\.onnx\.data differs"):
        verify(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json", "config.json"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refused(bundle, rf"{re.escape(name)} is missing: copy the bundle again or export it again")


def test_a_folder_in_place_of_a_file_is_refused(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    (bundle / "config.json").mkdir()
    refused(bundle, r"config\.json is not a file")


@pytest.mark.parametrize(
    "path",
    [
        "../secret", "a/../../secret", "/etc/passwd", "..", "", "C:secret", "C:\\secret", "..\\secret",
        "\\\\server\\share", "file\0", "sub/../../x",
    ],
)  # fmt: skip
def test_a_path_that_leaves_the_folder_is_refused(bundle: Path, path: str) -> None:
    (bundle.parent / "secret").write_text("x")
    files = json.loads((bundle / MANIFEST).read_text())["files"]
    tiny.change_json(bundle / MANIFEST, files=files | {path: {"size": 1, "sha256": "0"}})
    refused(bundle, rf"the path {re.escape(repr(path))} leaves the bundle: do not trust this bundle")


@pytest.mark.parametrize("path", [".", "./", "model.onnx/x", "a" * 5000, "\ud800", "nowhere/config.json"])
def test_a_path_that_no_file_can_have_is_refused(bundle: Path, path: str) -> None:
    files = json.loads((bundle / MANIFEST).read_text())["files"]
    tiny.change_json(bundle / MANIFEST, files=files | {path: {"size": 1, "sha256": "0"}})
    refused(bundle, "is missing|is not a file|leaves the bundle")


def test_a_link_that_leaves_the_folder_is_refused(bundle: Path) -> None:
    outside = bundle.parent / "outside.json"
    (bundle / "config.json").rename(outside)
    (bundle / "config.json").symlink_to(outside)
    refused(bundle, r"config\.json is a link that leaves the bundle: do not trust this bundle")


def test_links_that_stay_inside_and_a_linked_bundle_are_fine(bundle: Path) -> None:
    (bundle / "config.json").rename(bundle / "real.json")
    (bundle / "config.json").symlink_to("real.json")
    linked = bundle.with_name("linked")
    linked.symlink_to(bundle)
    torchless.load(linked).close()


def test_a_link_to_itself_is_refused(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    (bundle / "config.json").symlink_to("config.json")
    refused(bundle, r"config\.json is missing")


def read_manifest(bundle: Path) -> Any:
    return torchless.bundle.Manifest.from_json((bundle / MANIFEST).read_text(encoding="utf-8"))


MANIFESTS: list[tuple[bytes, str]] = [
    (b"", "is not JSON"),
    (b"{", "is not JSON"),
    (b"[" * 100_000, "is not JSON"),
    (b"\xff\xfe", "cannot be read"),
    (b"[1]", "holds list, not an object"),
    (b"null", "holds NoneType, not an object"),
    (b"{}", "lacks the field 'schema'"),
    (b'{"schema": ' + b"9" * 5000 + b"}", "is not JSON|has schema"),
    (b" " * (LARGEST_MANIFEST + 1), "has 8,388,609 bytes, far too many for a manifest"),
]


@pytest.mark.parametrize(("content", "match"), MANIFESTS, ids=lambda value: str(value)[:20])
def test_a_manifest_that_is_none_is_refused(bundle: Path, content: bytes, match: str) -> None:
    (bundle / MANIFEST).write_bytes(content)
    refused(bundle, rf"torchless\.json.*({match}).*")


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"schema": 2}, "has schema 2, this torchless reads up to 1: upgrade torchless"),
    ({"schema": "1"}, "field 'schema': expected a whole number, found str"),
    ({"schema": True}, "field 'schema': expected a whole number, found bool"),
    ({"task": ...}, "lacks the field 'task'"),
    ({"task": 5}, "field 'task': expected text, found int"),
    ({"task": "translation"}, "is for the task 'translation', which this torchless does not know: upgrade"),
    ({"context_length": 0}, "field 'context_length': 0 is below 1"),
    ({"vocab_size": -3}, "field 'vocab_size': -3 is below 1"),
    ({"vocab_size": 1.5}, "field 'vocab_size': expected a whole number, found float"),
    ({"graphs": []}, "lists no graph"),
    ({"graphs": {}}, "field 'graphs': expected a list, found dict"),
    ({"graphs": [5]}, "graphs holds int, not an object"),
    ({"graphs": [{"file": "model.onnx"}]}, "graphs lacks the field 'dialect'"),
    ({"files": ["model.onnx"]}, "field 'files': expected an object, found list"),
    ({"files": {"model.onnx": 5}}, r"files: model\.onnx holds int, not an object"),
    ({"files": {"model.onnx": {"size": -1, "sha256": ""}}}, "field 'size': -1 is negative"),
    ({"files": {}}, r"graph model\.onnx is not listed under files"),
    ({"special_tokens": {"eos": "0"}}, "field 'special_tokens': expected a whole number, found str"),
    ({"special_tokens": {"eos": [0, -1]}}, "field 'special_tokens': -1 is negative"),
    ({"cache": {"layers": 0, "heads": 4, "head_size": 8}}, "cache: field 'layers': 0 is below 1"),
    ({"cache": ...}, "the manifest has no cache layout"),
    ({"cache": {"layers": 3, "heads": 4, "head_size": 8}}, r"the graph of .* lacks past_key_values\.2\.key"),
    ({"cache": {"layers": 10**12, "heads": 4, "head_size": 8}}, "cache layout, labels or vocab_size are not those"),
    ({"cache": {"layers": 2, "heads": 10**9, "head_size": 8}}, "cache layout, labels or vocab_size are not those"),
    ({"cache": {"layers": 2, "heads": 4, "head_size": 16}}, "cache layout, labels or vocab_size are not those"),
    ({"vocab_size": 10**30}, "cache layout, labels or vocab_size are not those"),
    ({"labels": "ham"}, "field 'labels': expected a list, found str"),
    ({"pooling": {"mode": "mean", "normalize": 1}}, "field 'normalize': expected true or false, found int"),
    ({"task": "text-classification"}, "the manifest names no labels"),
    ({"task": "text-classification", "labels": ["a"], "problem_type": "x"}, "problem_type='x' is unknown"),
    ({"task": "text-classification", "labels": ["a"], "cache": ...}, "the graph of .* lacks attention_mask, which"),
    ({"task": "token-classification"}, "the manifest names no labels"),
    ({"task": "question-answering"}, "the graph of .* lacks start_logits, end_logits, which"),
    ({"task": "fill-mask"}, "the manifest names no mask token"),
    ({"task": "feature-extraction"}, "the graph of .* lacks sentence_embedding"),
]


@pytest.mark.parametrize(("fields", "match"), FIELDS, ids=lambda value: str(value)[:50])
def test_a_field_of_the_manifest_that_is_wrong_is_named(bundle: Path, fields: dict[str, Any], match: str) -> None:
    tiny.change_json(bundle / MANIFEST, **fields)
    refused(bundle, match)


def test_labels_that_do_not_match_the_head_are_refused(bert_bundles: dict[str, Path], copy_of: CopyOf) -> None:
    folder = copy_of(bert_bundles["text-classification"])
    tiny.change_json(folder / MANIFEST, labels=["ham", "spam"])
    with (
        pytest.raises(BundleError, match=r"the graph scores 3 labels, torchless\.json names 2: .*export it again"),
        torchless.load(folder) as model,
    ):
        model("a text")


def test_what_is_no_bundle_is_told_apart(tmp_path: Path, gpt_checkpoint: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere is not a folder: give the folder that `torchless export` wrote$")
    (tmp_path / "bundle.zip").write_bytes(b"PK")
    refused(tmp_path / "bundle.zip", r"bundle\.zip is not a folder: .*unzip the archive first")
    refused(gpt_checkpoint, r"checkpoint has no torchless\.json.* `torchless export .*checkpoint OUT`")


def test_a_bundle_without_a_tokenizer_answers_to_ids_and_says_so_for_text(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    seal(bundle, read_manifest(bundle))
    with torchless.load(bundle) as model:
        assert len(model([5, 6], max_new_tokens=3).token_ids) == 3
        with pytest.raises(torchless.TokenizerError, match="without a tokenizer: pass token ids, or export again"):
            model("text")


def test_a_tokenizer_that_is_none_is_named(bundle: Path) -> None:
    (bundle / "tokenizer.json").write_text("{}")
    seal(bundle, read_manifest(bundle))
    with (
        torchless.load(bundle) as model,
        pytest.raises(torchless.TokenizerError, match="is not a tokenizer"),
    ):
        model("text")


@pytest.mark.skipif(os.name == "nt", reason="permissions of Unix")
def test_a_read_only_bundle_loads_answers_and_is_left_as_it_was(bundle: Path) -> None:
    for path in bundle.iterdir():
        path.chmod(0o444)
    bundle.chmod(0o555)
    before = {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()}
    with torchless.load(bundle, verify=True) as model:
        assert model("The union", max_new_tokens=2).token_ids
    assert verify(bundle).ok
    assert {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()} == before
    bundle.chmod(0o755)
