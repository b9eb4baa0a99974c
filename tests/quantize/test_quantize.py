"""From a bundle to a smaller bundle, for both families and every recipe; and what is refused."""

from __future__ import annotations

import errno
import os
import shutil
import sys

import numpy as np
import onnx
import pytest
import tiny
import transformers

import torchless
from torchless.bundle import read_bundle
from torchless.errors import BundleError, InputError, QuantizationError
from torchless.export import export
from torchless.quantize import RECIPES, quantize
from torchless.quantize.budget import Told
from torchless.quantize.draft import Draft
from torchless.verify import verify
from torchless.writing import seal

FUSED = [name for name, recipe in RECIPES.items() if recipe.dialect == "fused"]  # the others: test_targets
FAMILIES = ("gpt2", "fill-mask", "text-classification", "feature-extraction")


@pytest.fixture(scope="module")
def bundles(gpt_bundle, bert_bundles):
    return {"gpt2": gpt_bundle} | bert_bundles


def damaged(bundle, folder, value):
    """A copy of the bundle whose first large body weight is `value` all over, sealed as if it were sound."""
    shutil.copytree(bundle, folder)
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    tensor = next(t for t in graph.initializer if "mlp.c_fc.weight" in t.name)
    where = {entry.key: entry.value for entry in tensor.external_data}
    with (folder / where["location"]).open("r+b") as stream:
        stream.seek(int(where["offset"]))
        stream.write(np.full(int(where["length"]) // 4, value, np.float32).tobytes())
    seal(folder, read_bundle(bundle).manifest)
    return folder


@pytest.mark.parametrize("recipe", FUSED)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantized_bundle_is_near_its_source_and_says_how_near(family, recipe, bundles, tmp_path):
    out = quantize(bundles[family], tmp_path / "out", recipe=recipe)
    made, source = read_bundle(out), read_bundle(bundles[family])
    parity, record = made.manifest.parity, made.manifest.recipe
    assert 0 < parity["mean_abs_error"] < parity["max_abs_error"]
    # Two layers of width 32 with weights far larger than a trained model's: 4 bits leave little but the shape.
    assert parity["mean_abs_error"] < (0.05 if recipe == "int8" else 0.5) * parity["largest_output"]
    assert parity["against"].startswith("model.onnx (fp32)")
    assert parity["source"] == {name: source.manifest.parity[name] for name in ("against", "max_abs_error")}
    assert record["name"] == recipe and record["quantized"] >= (0 if recipe == "fp16" else 8)
    left = [one["name"] for one in record["left_in_float"] if one["reason"] != "the recipe says so"]
    tables = [] if family == "gpt2" else ["token_type", "position"]
    assert left == [f"embeddings.{name}_embeddings.weight" for name in tables]
    (graph,) = made.manifest.graphs
    assert (graph.precision, graph.dialect) == (recipe, "fused")
    assert graph.signed_int8 == (recipe in ("int8", "int8-static"))
    assert verify(out).ok


@pytest.mark.parametrize(
    ("recipe", "body", "ends"), [("int8", "int8 columns", 8), ("int4", 4, 8), ("int4-all", 4, 4)]
)
def test_every_product_and_embedding_of_a_gpt_is_quantized(recipe, body, ends, gpt_bundle, tmp_path):
    out = quantize(gpt_bundle, tmp_path / "out", recipe=recipe)
    graph = onnx.load(str(out / "model.onnx"), load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert not {"MatMul", "FusedMatMul", "Gemm", "Gather"} & set(kinds)
    bits = [
        next(a.i for a in node.attribute if a.name == "bits")
        for node in graph.node
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized")
    ]
    assert kinds.count("MatMulIntegerToFloat") == (8 if recipe == "int8" else 0)  # four a layer
    assert bits == [ends, 8] + [body] * (0 if recipe == "int8" else 8) + [ends]  # words, places, body, head


def test_quantized_bundles_answer(bundles, tmp_path):
    gpt = torchless.load(quantize(bundles["gpt2"], tmp_path / "gpt"))
    assert gpt("The future", max_new_tokens=3).finish_reason in ("length", "stop")
    bert = torchless.load(quantize(bundles["text-classification"], tmp_path / "bert"))
    assert bert("You have won!").label in ("ham", "spam", "unsure")


def test_the_tokenizer_and_the_configs_come_along_and_other_graphs_do_not(gpt_bundle, tmp_path):
    out = quantize(gpt_bundle, tmp_path / "out")
    before = {name for name in read_bundle(gpt_bundle).manifest.files if not name.startswith("model.")}
    after = set(read_bundle(out).manifest.files)
    assert after == before | {"model.onnx", "model.onnx.data"}
    assert all((out / name).read_bytes() == (gpt_bundle / name).read_bytes() for name in before)


@pytest.mark.parametrize("recipe", FUSED)
def test_the_same_bundle_gives_the_same_bytes(recipe, gpt_bundle, tmp_path):
    one, two = (quantize(gpt_bundle, tmp_path / name, recipe=recipe) for name in "ab")
    assert sorted(os.listdir(one)) == sorted(os.listdir(two))
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in os.listdir(one))


def test_the_source_is_not_touched(gpt_bundle, copy_of, tmp_path):
    source = copy_of(gpt_bundle)
    quantize(source, tmp_path / "out")
    assert all((source / name).read_bytes() == (gpt_bundle / name).read_bytes() for name in os.listdir(gpt_bundle))


@pytest.mark.parametrize("config", [{"tie_word_embeddings": False}, {"n_embd": 20, "n_head": 2, "n_inner": 33}])
def test_odd_widths_and_an_untied_head_are_quantized_whole(config, tmp_path):
    export(tiny.gpt2(**config), tmp_path / "fp32", tokenizer=tiny.bpe(), check=False)
    out = read_bundle(quantize(tmp_path / "fp32", tmp_path / "int8"))
    assert out.manifest.recipe["left_in_float"] == []
    assert out.manifest.parity["mean_abs_error"] < 0.05 * out.manifest.parity["largest_output"]


def refused(bundle, out, match, error=QuantizationError, **options):
    before = sorted(out.parent.iterdir())
    with pytest.raises(error, match=match):
        quantize(bundle, out, **options)
    assert sorted(out.parent.iterdir()) == before, "something was left behind"


def test_an_unknown_recipe_is_refused(gpt_bundle, tmp_path):
    refused(
        gpt_bundle,
        tmp_path / "out",
        r"recipe='int3' is unknown \(known: int8, int8-block, int8-static, int4, .* file of one, \.json\)",
        recipe="int3",
    )


def test_a_quantized_bundle_is_not_quantized_again(gpt_bundle, tmp_path):
    small = quantize(gpt_bundle, tmp_path / "int4", recipe="int4")
    refused(small, tmp_path / "out", r"int4 is quantized already \(int4\): quantize the float32 bundle")


def test_a_bundle_without_a_fused_graph_is_refused(gpt_checkpoint, tmp_path):
    plain = export(gpt_checkpoint, tmp_path / "plain", dialect="standard", check=False)
    refused(
        plain,
        tmp_path / "out",
        r"no fused graph in float32 \(it has standard fp32\): export the checkpoint with --dialect",
    )


def test_a_bundle_is_not_quantized_into_itself(gpt_bundle, copy_of):
    source = copy_of(gpt_bundle)
    refused(source, source, r"is or holds the bundle to be quantized: choose another name", overwrite=True)
    assert read_bundle(source, verify=True)


def test_an_existing_bundle_is_kept_unless_it_may_be_overwritten(gpt_bundle, tmp_path):
    out = quantize(gpt_bundle, tmp_path / "out")
    refused(gpt_bundle, out, r"out exists: choose another name, or pass overwrite=True", error=BundleError)
    assert read_bundle(quantize(gpt_bundle, out, recipe="int4", overwrite=True)).manifest.recipe["name"] == "int4"


@pytest.mark.parametrize("recipe", FUSED)
def test_weights_that_are_no_numbers_are_refused(recipe, gpt_bundle, tmp_path):
    broken = damaged(gpt_bundle, tmp_path / "broken", np.nan)
    refused(broken, tmp_path / "out", r"mlp\.c_fc\.weight holds NaN or infinity", recipe=recipe)


def test_a_model_that_overflows_is_refused(gpt_bundle, tmp_path):
    broken = damaged(gpt_bundle, tmp_path / "broken", 1e38)
    refused(broken, tmp_path / "out", r"broken gives NaN or infinity")


def test_a_graph_without_matrices_is_refused(gpt_bundle, tmp_path, monkeypatch):
    for module in ("rewrite", "migrate"):
        monkeypatch.setattr(f"torchless.quantize.{module}.find_matrices", lambda draft: ([], []))
    refused(gpt_bundle, tmp_path / "out", r"model\.onnx has no matrix that int8 could quantize")


def test_without_onnx_one_sentence_says_what_to_install(gpt_bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchless.quantize.draft", None)
    refused(gpt_bundle, tmp_path / "out", r"quantizing needs onnx: pip install 'torchless\[quantize\]'")


@pytest.mark.parametrize(
    ("failure", "error", "match"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(errno.ENOSPC, "No space left on device"), BundleError, "No space left"),
    ],
)
def test_an_interruption_or_a_full_disk_leaves_nothing_behind(
    failure, error, match, gpt_bundle, tmp_path, monkeypatch
):
    stored = Draft._external

    def fail_halfway(self, name, array):
        if "scale" in name:
            raise failure
        return stored(self, name, array)

    monkeypatch.setattr(Draft, "_external", fail_halfway)
    refused(gpt_bundle, tmp_path / "out", match, error=error)


@pytest.mark.slow
def test_a_gpt2_of_124_million_weights_fits_its_budget(tmp_path):
    transformers.set_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    export(model, tmp_path / "fp32", check=False)
    del model
    megabytes = {}
    for recipe in RECIPES:
        out = quantize(tmp_path / "fp32", tmp_path / recipe, recipe=recipe)
        megabytes[recipe] = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    assert megabytes["int8"] <= 135 and megabytes["int4"] <= 100 and megabytes["int4-all"] <= 85, megabytes


@pytest.mark.parametrize("recipe", ["int8", ["int8", "fp32"]])
def test_a_bundle_is_not_written_into_the_one_that_it_is_made_from(recipe, gpt_bundle, copy_of):
    source = copy_of(gpt_bundle)
    before = sorted(os.listdir(source))
    with pytest.raises(QuantizationError, match="lies in the bundle to be quantized: choose another folder"):
        quantize(source, source / "made" / "int8", recipe=recipe)
    assert sorted(os.listdir(source)) == before


def test_calibration_texts_with_labels_that_the_model_lacks_are_refused(bert_bundles, tmp_path, tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "a.csv"
    file.write_text("text,label\nYou have won!,eggs\n", encoding="utf-8")
    message = r"line 2: labels that the model lacks: 'eggs'"
    refused(bert_bundles["text-classification"], tmp_path / "out", message, InputError, data=file)


def test_few_tokens_of_calibration_are_told_and_many_are_not(gpt_bundle, tmp_path):
    lines = []
    quantize(gpt_bundle, tmp_path / "few", recipe="int8-static", data=["The future"], told=Told(lines.append))
    assert len(lines) == 1 and "tokens of the data: a few hundred texts tell more" in lines[0]
    lines.clear()
    quantize(
        gpt_bundle, tmp_path / "many", recipe="int8-static", data=["The future"] * 900, told=Told(lines.append)
    )
    quantize(gpt_bundle, tmp_path / "none", recipe="int8-static", told=Told(lines.append))
    assert lines == []
