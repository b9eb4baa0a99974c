"""Graphs that are broken, hostile or compute something else, in bundles whose manifest is right."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny

import torchless
from torchless import BundleError
from torchless.bundle import read_bundle
from torchless.external import locations
from torchless.manifest import MANIFEST, Manifest
from torchless.verify import verify
from torchless.writing import seal

CopyOf = Callable[[Path], Path]


@pytest.fixture
def bundle(gpt_bundle: Path, copy_of: CopyOf) -> Path:
    return copy_of(gpt_bundle)


def refused(bundle: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        torchless.load(bundle)


def read_manifest(bundle: Path) -> Manifest:
    return Manifest.from_json((bundle / MANIFEST).read_text(encoding="utf-8"))


@pytest.mark.parametrize("location", ["../stolen.data", "{parent}/stolen.data", "unlisted.data", "..\\stolen.data"])
def test_weights_in_a_file_that_was_not_checked_are_refused_even_where_the_hash_is_right(
    bundle: Path, location: str
) -> None:
    location = location.format(parent=bundle.parent)
    shutil.copy(bundle / "model.onnx.data", bundle.parent / "stolen.data")
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    (entry,) = [entry for entry in model.graph.initializer[0].external_data if entry.key == "location"]
    entry.value = location
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    seal(bundle, read_manifest(bundle))
    shutil.copy(bundle / "model.onnx.data", bundle / "unlisted.data")
    read_bundle(bundle, verify=True)  # nothing is wrong with the manifest
    refused(bundle, rf"model\.onnx keeps weights in {re.escape(repr(location))}, which the manifest does not list")


def test_external_weights_are_found_wherever_a_graph_may_hold_a_tensor(gpt_bundle: Path) -> None:
    def tensor(location: str) -> onnx.TensorProto:
        made = onnx.TensorProto(name=location, dims=[1], data_type=onnx.TensorProto.FLOAT)
        made.external_data.add(key="length", value="not a location")
        made.external_data.add(key="location", value=location)
        return made

    make = onnx.helper
    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"), dims=[1])
    deep = make.make_graph([make.make_node("Constant", [], ["y"], value=tensor("deep"))], "deep", [], [])
    nodes = [
        make.make_node("If", ["x"], ["y"], then_branch=deep),
        make.make_node("Several", [], ["z"], tensors=[tensor("one"), tensor("other")], graphs=[deep]),
        make.make_node("Sparse", [], ["s"], sparse=sparse),
    ]
    graph = make.make_graph(nodes, "graph", [], [], [tensor("initializer"), tensor("ünïcode")])
    graph.sparse_initializer.append(sparse)
    function = make.make_function(
        "f", "F", [], ["y"], [make.make_node("Constant", [], ["y"], value=tensor("body"))], []
    )
    model = make.make_model(graph, functions=[function])
    expected = {"values", "indices", "deep", "one", "other", "initializer", "ünïcode", "body"}
    assert locations(model.SerializeToString()) == expected
    assert locations((gpt_bundle / "model.onnx").read_bytes()) == {"model.onnx.data"}


@pytest.mark.parametrize("content", [b"this is no protobuf", b"\x3a\x7f", b"\xff" * 20, b"\x0b"])
def test_a_graph_that_is_no_onnx_is_refused_even_where_the_hash_is_right(bundle: Path, content: bytes) -> None:
    (bundle / "model.onnx").write_bytes(content)
    seal(bundle, read_manifest(bundle))
    refused(bundle, r"model\.onnx is not an ONNX graph: copy the bundle again or export it again")


def test_an_operator_that_this_onnxruntime_lacks_is_said(bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    model.graph.node[0].op_type = "Teleport"
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    seal(bundle, read_manifest(bundle))
    refused(bundle, r"model\.onnx cannot be opened by onnxruntime [\d.]+: .*upgrade onnxruntime .*Teleport")


def test_a_bundle_that_was_not_checked_cannot_be_verified(bundle: Path) -> None:
    seal(bundle, dataclasses.replace(read_manifest(bundle), parity=None))
    with pytest.raises(BundleError, match=r"exported without a check \(check=False\): nothing to repeat"):
        verify(bundle)


@pytest.mark.parametrize(
    "record", [{"input_ids": 5}, {"input_ids": [[999]], "token_type_ids": [[0]]}, {"values": []}]
)
def test_a_damaged_parity_record_is_a_bundle_error(bundle: Path, record: dict[str, Any]) -> None:
    parity = json.loads((bundle / MANIFEST).read_text())["parity"]
    tiny.change_json(bundle / MANIFEST, parity=parity | record)
    with pytest.raises(BundleError, match="parity record"):
        verify(bundle)


def test_verify_sees_a_graph_that_computes_something_else(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx.data").read_bytes())
    content[2] ^= 0x80  # the first number of the embedding, which is the head too, doubled or halved
    (bundle / "model.onnx.data").write_bytes(content)
    seal(bundle, read_manifest(bundle))
    moved = verify(bundle)
    assert not moved.ok
    assert moved.errors["model.onnx"] > moved.allowed["model.onnx"]
    assert moved.errors["model.standard.onnx"] < moved.allowed["model.standard.onnx"]
