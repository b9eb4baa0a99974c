"""Graphs for other providers: recipes on the standard graph, several recipes in one bundle, a target alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from onnx import numpy_helper

import torchless
from torchless.bundle import read_bundle
from torchless.cli import main
from torchless.errors import InputError, ProviderError, QuantizationError
from torchless.export import export
from torchless.providers import BY_NAME, choose_graph
from torchless.providers.choose import make_provider
from torchless.quantize import quantize
from torchless.quantize.recipes import Blocks, Keep, Recipe, Static
from torchless.verify import verify

TEXTS = [text[:20] for text in tiny.SENTENCES]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets")
    checkpoint = tiny.save(tiny.bert("text-classification"), folder / "checkpoint", tiny.wordpiece())
    return export(checkpoint, folder / "bundle", dialect="all", check=False)


def graph_of(bundle: Path) -> Any:
    read = read_bundle(bundle)
    return onnx.load(str(bundle / read.manifest.graphs[0].file))


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_int8_qdq_has_only_what_tensorrt_takes(family: str, gpt_bundle: Path, bert: Path, tmp_path: Path) -> None:
    source = gpt_bundle if family == "gpt" else bert
    out = quantize(source, tmp_path / "out", recipe="int8-qdq", data=TEXTS)
    model = graph_of(out)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    zeros = 0
    for node in model.graph.node:
        assert node.op_type not in ("MatMulInteger", "QLinearMatMul", "DynamicQuantizeLinear")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            point = numpy_helper.to_array(tensors[node.input[2]], str(out))
            assert point.dtype == np.int8 and not point.any()
            zeros += 1
    assert zeros >= 8
    manifest = read_bundle(out).manifest
    assert manifest.graphs[0].providers == ("tensorrt", "openvino", "cpu") and verify(out).ok
    parity: Any = manifest.parity
    assert 0 < parity["mean_abs_error"] < 0.1 * parity["largest_output"]


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_fp16_standard_is_float16_of_onnx_alone(family: str, gpt_bundle: Path, bert: Path, tmp_path: Path) -> None:
    out = quantize(gpt_bundle if family == "gpt" else bert, tmp_path / "out", recipe="fp16-standard")
    model = graph_of(out)
    assert {node.domain for node in model.graph.node} == {""}
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
    assert "FLOAT16" in kinds and "FLOAT" not in kinds
    assert read_bundle(out).manifest.graphs[0].providers[0] == "tensorrt" and verify(out).ok


def test_several_recipes_lie_in_one_bundle_and_load_takes_the_one_for_its_provider(
    gpt_bundle: Path, tmp_path: Path
) -> None:
    out = quantize(gpt_bundle, tmp_path / "out", recipe=["int8", "fp16", "int8-qdq", "fp32"], data=TEXTS)
    bundle = read_bundle(out, verify=True)
    files = [graph.file for graph in bundle.manifest.graphs]
    assert files == [
        "model.int8.onnx", "model.fp16.onnx", "model.int8-qdq.onnx", "model.onnx", "model.standard.onnx"
    ]  # fmt: skip
    for name, file in (("cpu", files[0]), ("cuda", files[1]), ("tensorrt", files[2]), ("openvino", files[2])):
        assert choose_graph(bundle, make_provider(BY_NAME[name](), auto=False, passed_over=[])).file == file
    with torchless.load(out) as gpt, torchless.load(gpt_bundle) as source:
        assert gpt.graph.precision == "int8"
        assert torchless.load(out, file="model.onnx")("The union").text == source("The union").text
        assert torchless.load(out, dialect="standard").graph.precision == "int8-qdq"
    alone = read_bundle(quantize(gpt_bundle, tmp_path / "alone", recipe="int8"))
    recipes = [graph.recipe for graph in bundle.manifest.graphs]
    assert bundle.manifest.recipe == alone.manifest.recipe and recipes[0] is None and recipes[3] is None
    assert recipes[1] is not None and recipes[1]["name"] == "fp16"
    found = verify(out)
    assert found.ok and list(found.errors) == files
    again = quantize(out, tmp_path / "again", recipe="int4")  # the float graph is there, whatever lies beside it
    assert read_bundle(again).manifest.graphs[0].precision == "int4"


def test_the_command_takes_a_recipe_again_and_says_what_each_graph_is_for(
    gpt_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["quantize", str(gpt_bundle), str(out), "--recipe", "int8", "--recipe", "fp16"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{out}: 2 graphs, ") and said[1].startswith(
        "model.int8.onnx: int8, for cpu; outputs"
    )
    assert said[2].startswith("model.fp16.onnx: fp16, for cuda, directml, cpu; outputs differ from model.onnx")
    assert main(["inspect", str(out)]) == 0
    assert "model.fp16.onnx: fused, fp16, for cuda, directml, cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "data", "recipe"),
    [
        ("cpu", None, "int8"),
        ("cpu-avx2", None, "int8"),
        ("cuda", None, "fp16"),
        ("tensorrt", TEXTS, "int8-qdq"),
        ("tensorrt", None, "fp16-standard"),
        ("openvino", TEXTS, "int8-qdq"),
    ],
)
def test_a_target_alone_names_the_recipe(
    target: str, data: Any, recipe: str, gpt_bundle: Path, tmp_path: Path
) -> None:
    out = quantize(gpt_bundle, tmp_path / "out", target=target, data=data)
    manifest = read_bundle(out).manifest
    assert manifest.graphs[0].precision == recipe
    assert target.partition("-")[0] in manifest.graphs[0].providers


def test_auto_for_tensorrt_judges_its_recipes(gpt_bundle: Path, tmp_path: Path) -> None:
    out = quantize(gpt_bundle, tmp_path / "out", recipe="auto", target="tensorrt", data=TEXTS, max_loss=0.9)
    assert read_bundle(out).manifest.graphs[0].precision == "int8-qdq"
    out = quantize(gpt_bundle, tmp_path / "unjudged", recipe="auto", target="tensorrt")
    assert read_bundle(out).manifest.graphs[0].precision == "fp16-standard"


def test_a_graph_for_the_cpu_is_never_run_elsewhere(gpt_bundle: Path, tmp_path: Path) -> None:
    bundle = read_bundle(quantize(gpt_bundle, tmp_path / "int8"))
    for name in ("cuda", "tensorrt", "openvino", "directml", "coreml"):
        with pytest.raises(ProviderError, match=rf"has no graph for {name} "):
            choose_graph(bundle, make_provider(BY_NAME[name](), auto=False, passed_over=[]))


def test_what_does_not_fit_together_is_refused(gpt_bundle: Path, bert: Path, tmp_path: Path) -> None:
    def refused(said: str, error: Any, **options: Any) -> None:
        with pytest.raises(error, match=said):
            quantize(gpt_bundle, tmp_path / "out", **options)
        assert not list(tmp_path.glob("*out*"))

    refused("give one or more, each once", InputError, recipe=[])
    refused("give one or more, each once", InputError, recipe=["int8", "int8"])
    refused("cannot stand in a list", InputError, recipe=["int8", "auto"])
    refused("no target and no budget", InputError, recipe=["int8"], target="cuda")
    refused("'int9' is unknown", QuantizationError, recipe=["int8", "int9"])
    with pytest.raises(QuantizationError, match="no operators for blocks"):
        Recipe("mine", Blocks(8, 32), Keep(), Keep(), dialect="standard")
    assert Recipe("mine", Static(), Keep(), Keep(), dialect="standard").record()["dialect"] == "standard"
    fused = export(tiny.gpt2(), tmp_path / "fused", check=False)
    with pytest.raises(QuantizationError, match=r"no standard graph in float32 .*--dialect all"):
        quantize(fused, tmp_path / "made", recipe="int8-qdq")
