"""Each way to turn floats into integers keeps the error bound that it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from torchless.errors import QuantizationError
from torchless.quantize.weights import BLOCKS, TINY, block_size, blocks, int8_columns, unpack

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
MATRICES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=FINITE)
ROUNDING = 1 + 1e-4  # of the float32 arithmetic in between: a step has 127 of these widths


@given(MATRICES)
def test_int8_columns_are_within_half_a_step(matrix):
    codes, scale = int8_columns("w", matrix)
    assert codes.dtype == np.int8 and codes.min(initial=0) >= -127
    error = np.abs(matrix.astype(np.float64) - codes.astype(np.float64) * scale)
    assert (error <= scale.astype(np.float64) / 2 * ROUNDING).all()
    assert (scale <= np.maximum(np.abs(matrix).max(axis=0) / 127 * ROUNDING, TINY)).all()


@given(MATRICES, st.sampled_from([4, 8]), st.sampled_from(BLOCKS))
def test_blocks_are_within_half_a_step_unless_clipped(rows, bits, size):
    codes, scale = blocks("w", rows, bits, size)
    middle = 1 << (bits - 1)
    count, length = rows.shape
    assert codes.shape == (count, -(-length // size), size * bits // 8) and codes.dtype == np.uint8
    step = np.repeat(np.abs(scale), size, axis=1)[:, :length].astype(np.float64)
    error = np.abs(rows.astype(np.float64) - unpack(codes, scale, bits, length))
    clipped = np.abs(rows) > (middle - 1) * step * (2 - ROUNDING)
    assert (error <= np.where(clipped, np.abs(rows), 0.5 * step) * ROUNDING).all()
    if bits == 8:
        assert (error <= step * ROUNDING).all()
    largest = np.abs(rows).max() * (1.1 if bits == 4 else 1)
    assert (np.abs(scale) * middle <= np.maximum(largest * ROUNDING, middle * TINY)).all()


def test_the_largest_value_of_a_block_of_8_bits_is_exact():
    rows = np.linspace(-3, 2, 64, dtype=np.float32).reshape(2, 32)
    codes, scale = blocks("w", rows, 8, 32)
    assert np.array_equal(unpack(codes, scale, 8, 32)[[0, 1], [0, 31]], rows[[0, 1], [0, 31]])


@given(arrays(np.float32, (3, 32), elements=st.floats(-100, 100, width=32)), st.sampled_from([16, 32]))
def test_the_scale_of_4_bits_is_no_worse_than_that_of_the_largest_value(rows, size):
    error = ((unpack(*blocks("w", rows, 4, size), 4, 32) - rows) ** 2).reshape(3, -1, size).sum(axis=-1)
    split = rows.reshape(3, -1, size)
    largest = np.take_along_axis(split, np.abs(split).argmax(axis=-1, keepdims=True), -1)
    step = np.where(np.abs(largest) < 8 * TINY, TINY, largest / -8)
    plain = ((np.clip(np.rint(split / step), -8, 7) * step - split) ** 2).sum(axis=-1)
    assert (error <= plain * 1.001 + 1e-9).all()


def test_normal_weights_of_4_bits_lose_a_tenth_less_than_with_the_scale_of_the_largest_value():
    rows = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    split = rows.reshape(64, 2, 128)
    step = np.take_along_axis(split, np.abs(split).argmax(axis=-1, keepdims=True), -1) / -8
    plain = ((np.clip(np.rint(split / step), -8, 7) * step - split) ** 2).sum()
    assert ((unpack(*blocks("w", rows, 4, 128), 4, 256) - rows) ** 2).sum() < 0.9 * plain


def test_four_bits_lie_low_half_first():
    codes, scale = blocks("w", np.arange(-8, 8, dtype=np.float32)[None], 4, 16)
    assert scale == 1
    assert codes.tolist() == [[[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]]]


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-40])
def test_zeros_and_subnormals_have_a_scale_that_can_be_divided_by(value):
    matrix = np.full((20, 3), value, np.float32)
    for stands_for in (np.multiply(*int8_columns("w", matrix)), unpack(*blocks("w", matrix, 4, 16), 4, 3)):
        assert (np.abs(stands_for - matrix) <= TINY).all()
        assert value or not stands_for.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_refused_by_name(bad):
    matrix = np.ones((4, 5), np.float32)
    matrix[2, 3] = bad
    for quantizer in (lambda: int8_columns("h.0.mlp", matrix), lambda: blocks("h.0.mlp", matrix, 8, 16)):
        with pytest.raises(QuantizationError, match=r"h\.0\.mlp holds NaN or infinity.*export a sound one"):
            quantizer()


def test_a_block_is_the_largest_that_pads_least():
    sizes = {768: 128, 384: 128, 320: 64, 96: 32, 60: 64, 20: 32, 16: 16, 1: 16}
    assert {length: block_size(length, 128) for length in sizes} == sizes
    assert block_size(768, 32) == 32
