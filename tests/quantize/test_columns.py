"""int8 columns: rows scaled by themselves or in a measured range, activations with a floor, biases in passing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx
import pytest
import tiny
from graphs import product, run, save, uneven

from torchless.bundle import read_bundle
from torchless.export import export
from torchless.export.builder import CONTRIB, Builder
from torchless.probe import Probe, max_error, run_probe
from torchless.quantize import quantize
from torchless.quantize.calibrate import Calibration, Span
from torchless.quantize.columns import BELOW_ZERO, FLOORS, MARGIN, steady_ends, to_columns
from torchless.quantize.draft import Draft
from torchless.quantize.matrices import find_matrices
from torchless.quantize.recipes import RECIPES, Columns
from torchless.quantize.static import grid
from torchless.quantize.weights import int8_columns

ENDS = (-3.0, 5.0)


def kinds(path):
    return [node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node]


def swapped(folder, steady, build, weight):
    """A graph of x [M,K], changed by `build` before and after its product, with the product swapped."""
    b = Builder("fused")
    x = b.input("x", np.float32, ["M", weight.shape[0]])
    b.output("y", build(b, x, weight), np.float32, ["M", weight.shape[1]])
    source = save(b, folder)
    target = folder / "out" / source.name
    target.parent.mkdir()
    draft = Draft(source, target)
    (matrix,) = (one for one in find_matrices(draft)[0] if one.name == "w")
    to_columns(draft, matrix, {x: ENDS for x in matrix.inputs} if steady else {})
    draft.save()
    return source, target


def activated(b, x, weight):
    bias = b.weight("b", uneven(weight.shape[0], seed=9))
    return b.op("Identity", b.op("MatMul", b.op("BiasGelu", x, bias, domain=CONTRIB), b.weight("w", weight)))


def test_a_range_is_used_where_rows_are_alike(tmp_path):
    source = product(tmp_path, uneven(8, 4))
    spans = {"even": Span(-3, 3, 3.0), "uneven": Span(-30, 30, 3.0), "floor": Span(-0.17, 6, 5.0)}
    nothing = Draft(source, None)
    assert set(steady_ends(nothing, spans, Columns(2.0))) == {"even", "floor"}
    assert steady_ends(nothing, spans, Columns(2.0))["even"] == (-3 * MARGIN, 3 * MARGIN)
    assert steady_ends(nothing, spans, Columns()) == {}


def test_a_measured_range_rounds_every_row_alike_and_cuts_off_beyond_it(tmp_path):
    weight, x = uneven(40, 24), np.random.default_rng(1).normal(size=(9, 40)).astype(np.float32)
    x[3, 5] = 50  # beyond the range
    _, target = swapped(
        tmp_path, True, lambda b, x, w: b.op("Identity", b.op("MatMul", x, b.weight("w", w))), weight
    )
    step, zero = grid(ENDS, symmetric=False)
    codes, scale = int8_columns("w", weight)
    whole = np.clip(np.rint(x / step) + int(zero), 0, 255).astype(np.int64) - int(zero)
    exact = (whole @ codes.astype(np.int64)) * scale.astype(np.float64) * step
    assert np.abs(run(target, x=x)["y"] - exact).max() < 1e-6 * np.abs(exact).max()
    assert "ReduceMax" not in kinds(target)


@pytest.mark.parametrize("rows", [1, 7])
def test_behind_a_gelu_the_codes_go_to_what_is_above_zero(rows, tmp_path):
    weight, x = uneven(40, 24), 3 * uneven(rows, 40, seed=4)
    source, target = swapped(tmp_path, False, activated, weight)
    hidden = run_hidden(source, x)
    largest = np.maximum(hidden.max(axis=1, keepdims=True), -FLOORS["BiasGelu"] / BELOW_ZERO * (255 - BELOW_ZERO))
    step = largest / (255 - BELOW_ZERO)
    codes, scale = int8_columns("w", weight)
    whole = np.clip(np.rint(hidden / step), -BELOW_ZERO, 255 - BELOW_ZERO).astype(np.int64)
    assert whole.min() < 0 and np.abs(whole * step - hidden).max() <= 0.5001 * step.max()  # nothing is cut off
    exact = (whole @ codes.astype(np.int64)) * scale.astype(np.float64) * step
    assert np.abs(run(target, x=x)["y"] - exact).max() < 1e-2 * np.abs(exact).max()


def run_hidden(source, x):
    """The GELU's result, computed by the source with an identity for its weight."""
    model = onnx.load(str(source))
    bias = next(onnx.numpy_helper.to_array(t, str(source.parent)) for t in model.graph.initializer if t.name == "b")
    values = x.astype(np.float64) + bias
    return values / 2 * (1 + np.vectorize(math.erf)(values / 2**0.5))


@pytest.mark.parametrize("task", ["fill-mask", "text-classification"])
def test_biases_go_into_the_products_of_a_bert_and_change_nothing(task, tmp_path):
    export(
        tiny.bert(task, hidden_size=60, num_attention_heads=3),
        tmp_path / "fp32",
        tokenizer=tiny.wordpiece(),
        check=False,
    )
    source = read_bundle(tmp_path / "fp32")
    out = read_bundle(quantize(source.path, tmp_path / "int8"))
    assert {"BiasGelu"} & set(kinds(source.file("model.onnx"))) and "Gelu" in kinds(out.file("model.onnx"))
    with_bias = [
        node
        for node in onnx.load(str(out.file("model.onnx")), load_external_data=False).graph.node
        if node.op_type == "MatMulIntegerToFloat" and len(node.input) == 7
    ]
    assert len(with_bias) >= 3
    probe = Probe.make(source.manifest)
    before, after = (run_probe(one, one.manifest.graphs[0], probe) for one in (source, out))
    assert max_error(after, before) < 0.1 * max(np.abs(row).max() for row in before)


@pytest.mark.parametrize(("heads", "padding"), [(3, True), (5, False)])
def test_a_product_that_goes_back_into_its_attention_changes_nothing(heads, padding, tmp_path, monkeypatch):
    """Bit for bit, beside one that stays outside, with padding as without."""
    export(
        tiny.bert("feature-extraction", hidden_size=60, num_attention_heads=heads),
        tmp_path / "fp32",
        tokenizer=tiny.wordpiece(),
        check=False,
    )
    closed = read_bundle(quantize(tmp_path / "fp32", tmp_path / "closed"))
    monkeypatch.setattr("torchless.quantize.columns.close_attention", lambda *given: False)
    opened = read_bundle(quantize(tmp_path / "fp32", tmp_path / "opened"))
    wanted = kinds(opened.file("model.onnx"))
    assert wanted.count("MultiHeadAttention") == 2 and "QAttention" not in wanted
    found = kinds(closed.file("model.onnx"))
    assert found.count("QAttention") == 2 and not {"MultiHeadAttention", "Split"} & set(found)
    ids = np.random.default_rng(3).integers(5, 60, (3, 11))
    mask = np.ones_like(ids)
    if padding:
        mask[1, 4:] = mask[2, 1:] = 0
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    one, other = (run(bundle.file("model.onnx"), **feeds) for bundle in (closed, opened))
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_product_behind_uneven_rows_or_with_shifted_scores_stays_outside(tmp_path):
    export(tiny.encoder("mpnet", "Model"), tmp_path / "fp32", tokenizer=tiny.wordpiece(), check=False)
    shifted = kinds(read_bundle(quantize(tmp_path / "fp32", tmp_path / "shifted")).file("model.onnx"))
    assert "QAttention" not in shifted and "MultiHeadAttention" in shifted
    rows = dataclasses.replace(RECIPES["int8"], body=Columns())
    export(tiny.bert("feature-extraction"), tmp_path / "bert", tokenizer=tiny.wordpiece(), check=False)
    by_row = kinds(read_bundle(quantize(tmp_path / "bert", tmp_path / "rows", recipe=rows)).file("model.onnx"))
    assert "QAttention" not in by_row and "MultiHeadAttention" in by_row


def test_the_default_recipe_measures_and_a_strange_row_is_cut_not_lost(tmp_path):
    export(tiny.gpt2(n_embd=60, n_head=3), tmp_path / "fp32", tokenizer=tiny.bpe(), check=False)
    source = read_bundle(tmp_path / "fp32")
    (graph,) = source.manifest.graphs
    spans = Calibration.random(source, graph).spans(["LayerNormalization_0"])
    assert steady_ends(Draft(source.file(graph.file), None), spans, RECIPES["int8"].body)
    assert spans["LayerNormalization_0"].low < 0 < spans["LayerNormalization_0"].high
