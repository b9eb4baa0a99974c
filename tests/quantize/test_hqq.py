"""HQQ: zero points fitted to the weights, whole numbers, in the layout that MatMulNBits reads."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from graphs import NONE, product, run, uneven
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from torchless.bundle import read_bundle
from torchless.errors import QuantizationError
from torchless.quantize import RECIPES, quantize
from torchless.quantize.draft import Draft
from torchless.quantize.hqq import P, hqq
from torchless.quantize.recipes import Blocks
from torchless.quantize.rewrite import rewrite
from torchless.quantize.weights import blocks, unpack

FINITE = st.floats(-(2.0**60), 2.0**60, width=32)
INT4 = dataclasses.replace(RECIPES["int4"], body=Blocks(4, 32, "hqq"), encoder=None)


def values(rows, bits, size):
    """What the blocks stand for [N,K]."""
    codes, scale, zero = hqq("w", rows, bits, size)
    return unpack(codes, scale, bits, rows.shape[1], zero)


def loss(error):
    return (np.abs(error) ** P).sum()


def of_the_range(rows, bits, size):
    """The same with the scale and zero point of each block's ends, which is where the fit begins."""
    padded = np.zeros((len(rows), -(-rows.shape[1] // size) * size))
    padded[:, : rows.shape[1]] = rows
    blocks = padded.reshape(len(rows), -1, size)
    low, high = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)
    top = (1 << bits) - 1
    step = np.maximum((high - low) / top, 1e-38)[..., None]
    zero = np.clip(np.rint(-low[..., None] / step), 0, top)
    found = (np.clip(np.rint(blocks / step + zero), 0, top) - zero) * step
    return found.reshape(len(rows), -1)[:, : rows.shape[1]]


@settings(deadline=None)
@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=70), elements=FINITE),
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32]),
)  # fmt: skip
def test_the_p_norm_of_no_error_is_above_that_of_the_blocks_own_range(rows, bits, size):
    ours, plain = (loss(found - rows) for found in (values(rows, bits, size), of_the_range(rows, bits, size)))
    assert ours <= plain * 1.001 + 1e-4 * loss(rows)  # float32's own rounding
    assert (values(rows, bits, size)[rows == 0] == 0).all()


@pytest.mark.parametrize("size", [32, 128])
def test_of_long_tails_a_fifth_less_is_lost_than_with_searched_scales(size):
    rows = np.random.default_rng(0).standard_t(4, size=(64, 256)).astype(np.float32)
    searched = unpack(*blocks("w", rows, 4, size), 4, 256)
    found = values(rows, 4, size)
    assert ((found - rows) ** 2).mean() < 0.8 * ((searched - rows) ** 2).mean()
    assert loss(found - rows) < 0.97 * loss(of_the_range(rows, 4, size) - rows)


@pytest.mark.parametrize(("bits", "length"), [(4, 64), (4, 80), (8, 96)])
def test_the_operator_computes_with_the_same_numbers(bits, length, tmp_path):
    """With an odd number of blocks too, whose last zero point has a byte to itself."""
    weight = uneven(length, 24)
    source, target = product(tmp_path, weight), tmp_path / "out" / "model.onnx"
    target.parent.mkdir()
    recipe = dataclasses.replace(INT4, body=Blocks(bits, 16, "hqq"), ends=Blocks(bits, 16, "hqq"))
    draft = Draft(source, target)
    report = rewrite(draft, recipe, NONE)
    draft.save()
    assert [scheme for _, scheme in report.done] == [Blocks(bits, 16, "hqq")]
    x = uneven(5, length, seed=2)
    exact = x.astype(np.float64) @ values(np.ascontiguousarray(weight.T), bits, 16).T
    (found,) = run(target, x=x).values()
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()  # activations are rounded to 8 bits


def test_a_bundle_has_it_in_its_body_and_searched_scales_where_tokens_are_looked_up(gpt_bundle, tmp_path):
    made = read_bundle(quantize(gpt_bundle, tmp_path / "out", recipe=INT4))
    graph = onnx.load(str(made.file("model.onnx")), load_external_data=False).graph
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert sum(len(node.input) == 4 for node in products) == len(products) - 1  # the head reads the embedding
    assert made.manifest.recipe["body"]["method"] == "hqq"


def test_the_largest_floats_stay_what_they_are():
    largest = np.finfo(np.float32).max / 2  # the ends of a range are rounded, too
    rows = np.tile(np.array([largest, -largest, 0, largest / 2], np.float32), (2, 16))
    with np.errstate(all="raise", under="ignore"):
        found = values(rows, 4, 32)
    assert np.isfinite(found).all() and np.abs(found / largest - rows / largest).max() < 0.1


def test_weights_that_are_no_numbers_are_refused_by_name():
    with pytest.raises(QuantizationError, match="the_weight holds NaN"):
        hqq("the_weight", np.full((2, 32), np.nan, np.float32), 4, 32)
