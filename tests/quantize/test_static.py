"""int8-static: a range for all texts, in the form that other engines take; and where the range comes from."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import tiny
from graphs import product, run, uneven

from torchless.bundle import read_bundle
from torchless.export import export
from torchless.quantize import quantize
from torchless.quantize.calibrate import Calibration
from torchless.quantize.draft import Draft
from torchless.quantize.recipes import RANGES, RECIPES, Recipe, Static
from torchless.quantize.rewrite import rewrite
from torchless.quantize.static import grid, ranges
from torchless.quantize.weights import int8_columns


class Seen(Calibration):
    """A calibration that has seen these arrays under every name."""

    def __init__(self, *arrays):
        self.arrays = arrays

    def __call__(self, values):
        return ({name: array for name in values} for array in self.arrays)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_static_product_rounds_both_sides_once(symmetric, tmp_path):
    weight, x = uneven(64, 48), uneven(9, 64, seed=2)
    target = tmp_path / "out" / "model.onnx"
    target.parent.mkdir()
    draft = Draft(product(tmp_path, weight), target)
    recipe = Recipe("r", Static("minmax", symmetric), RECIPES["int8"].ends, RECIPES["int8"].tables)
    report = rewrite(draft, recipe, Seen(x[:5], x[5:]))
    draft.save()
    assert report.signed_int8
    codes, scale = int8_columns("w", weight)
    step, zero = grid((min(0.0, x.min()), max(0.0, x.max())), symmetric)
    whole = np.clip(np.rint(x / step) + zero, np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max).astype(int) - zero
    exact = (whole @ codes.astype(np.int64)) * scale.astype(np.float64) * step
    assert np.abs(run(target, x=x)["y"] - exact).max() < 2e-6 * np.abs(exact).max()


def test_the_grid_holds_zero_and_both_ends():
    step, zero = grid((-1.0, 3.0), False)
    assert zero.dtype == np.uint8 and np.isclose((0 - int(zero)) * step, -1, atol=step)
    assert np.isclose((255 - int(zero)) * step, 3, atol=step)
    step, zero = grid((-1.0, 3.0), True)
    assert zero == 0 and np.isclose(127 * step, 3)
    assert grid((0.0, 0.0), False)[0] > 0  # a value that is always zero


@pytest.mark.parametrize("kind", RANGES)
def test_the_range_holds_what_was_seen_or_leaves_out_the_rarest(kind):
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=(200, 50)).astype(np.float32) for _ in range(4)]
    arrays[1][3, 7] = 90  # once among 40,000
    low, high = ranges(Seen(*arrays), ["x"], Static(kind))["x"]
    assert low < -2 and high > 2
    assert (high == 90) if kind == "minmax" else high <= 90
    if kind == "entropy":
        assert high < 30


def test_other_engines_find_only_their_own_operators_around_the_products(tmp_path):
    export(tiny.bert("text-classification"), tmp_path / "fp32", tokenizer=tiny.wordpiece(), check=False)
    out = quantize(tmp_path / "fp32", tmp_path / "static", recipe="int8-static")
    graph = onnx.load(str(out / "model.onnx"), load_external_data=False).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert products
    for node in products:
        assert [makers[value] for value in node.input] == ["DequantizeLinear"] * 2
    assert read_bundle(out).manifest.graphs[0].signed_int8
