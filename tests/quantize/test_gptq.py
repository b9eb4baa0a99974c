"""GPTQ: the algorithm of the paper, an output error that is never above that of HQQ, the same layout."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from torchless.bundle import read_bundle
from torchless.errors import QuantizationError
from torchless.export import export
from torchless.quantize import gptq as module
from torchless.quantize import quantize
from torchless.quantize.gptq import gptq
from torchless.quantize.hqq import hqq
from torchless.quantize.weights import unpack


def correlated(length, tokens=400, seed=0):
    """Inputs [T,K] of a few directions and a little noise, channels of unlike size."""
    generator = np.random.default_rng(seed)
    directions = generator.normal(size=(max(2, length // 8), length))
    x = generator.normal(size=(tokens, len(directions))) @ directions + 0.3 * generator.normal(
        size=(tokens, length)
    )
    return x * generator.uniform(0.2, 3, length)


def moments(x):
    return x.T @ x / len(x)


def weights(count, length, seed=1):
    return np.random.default_rng(seed).normal(size=(count, length)).astype(np.float32)


def stands_for(quantized, bits, length):
    codes, scale, zero = quantized
    return unpack(codes, scale, bits, length, zero)


def output_error(rows, quantized, x, bits=4):
    """The mean square of what each row's output is off by, from the inputs themselves."""
    return (((rows - stands_for(quantized, bits, rows.shape[1])).astype(np.float64) @ x.T) ** 2).mean(axis=1)


@pytest.mark.parametrize("size", [16, 32, 128])
def test_on_correlated_inputs_the_output_error_is_less_than_half_of_hqqs(size):
    rows, x = weights(24, 256), correlated(256)
    ours = output_error(rows, gptq("w", rows, moments(x), 4, size), x)
    alone = output_error(rows, hqq("w", rows, 4, size), x)
    assert ours.mean() < 0.5 * alone.mean()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 70), st.sampled_from([4, 8]), st.sampled_from([16, 32]))
def test_no_rows_output_error_is_above_hqqs(seed, length, bits, size):
    rows = weights(5, length, seed) ** 3  # long tails
    x = correlated(length, tokens=7, seed=seed) ** 3  # fewer tokens than channels: H is singular
    ours = output_error(rows, gptq("w", rows, moments(x), bits, size), x, bits)
    alone = output_error(rows, hqq("w", rows, bits, size), x, bits)
    assert (ours <= alone * (1 + 1e-6) + 1e-12).all()


def test_rows_that_gain_nothing_are_as_hqq_has_them():
    rows, x = weights(64, 64), np.random.default_rng(2).normal(size=(300, 64))  # hardly correlated
    ours, alone = gptq("w", rows, moments(x), 4, 16), hqq("w", rows, 4, 16)
    same = (stands_for(ours, 4, 64) == stands_for(alone, 4, 64)).all(axis=1)
    assert 0 < same.sum() < len(rows)
    assert (output_error(rows, ours, x) <= output_error(rows, alone, x) * (1 + 1e-6)).all()


def test_channels_are_rounded_in_turn_as_the_paper_defines_it():
    length, size, damp = 150, 16, 0.01  # more channels than are worked on at a time, the last block padded
    rows, hessian = weights(6, length), moments(correlated(length))
    damped = hessian + damp * hessian.diagonal().mean() * np.eye(length)
    scale = np.full((6, -(-length // size)), 0.3, np.float32)
    zero = np.full_like(scale, 7)
    left, expected = rows.astype(np.float64), np.zeros(rows.shape)
    remaining = list(np.argsort(-hessian.diagonal(), kind="stable"))
    while remaining:  # equation 2, with the inverse taken anew for the weights that remain
        inverse = np.linalg.inv(damped[np.ix_(remaining, remaining)])
        channel = remaining[0]
        expected[:, channel] = np.clip(np.rint(left[:, channel] / 0.3), -7, 8)
        error = (left[:, channel] - expected[:, channel] * 0.3) / inverse[0, 0]
        left[:, remaining] -= error[:, None] * inverse[0]
        remaining = remaining[1:]
    ours = module._round_in_turn(rows, scale, zero, damped, 15, size)
    assert (ours == expected).mean() > 0.995  # float32 beside float64: a rounding may fall the other way
    assert not np.array_equal(ours, np.clip(np.rint(rows / 0.3), -7, 8))


def test_channels_that_never_fire_are_rounded_to_alone():
    rows, x = weights(8, 64), correlated(64)
    x[:, ::3] = 0
    codes, scale, zero = gptq("w", rows, moments(x), 4, 32)
    error = np.abs(rows - unpack(codes, scale, 4, 64, zero))
    step = np.repeat(scale, 32, axis=1)
    below = np.repeat(np.hstack([zero & 15, zero >> 4]).astype(int), 32, axis=1)  # codes under zero
    inside = (rows > -below * step) & (rows < (15 - below) * step)
    assert (error <= 0.5001 * step)[:, ::3][inside[:, ::3]].all()
    assert (error > 0.51 * step)[inside].any()  # the others are not


def test_without_any_input_the_result_is_that_of_hqq():
    rows = weights(3, 40)
    ours, alone = gptq("w", rows, np.zeros((40, 40)), 4, 16), hqq("w", rows, 4, 16)
    assert all(np.array_equal(a, b) for a, b in zip(ours, alone, strict=True))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(1, 8), (3, 50)])
def test_codes_and_scales_lie_as_hqqs_do(bits, shape):
    rows = weights(*shape)
    ours, alone = gptq("w", rows, moments(correlated(shape[1])), bits, 32), hqq("w", rows, bits, 32)
    assert [(a.shape, a.dtype) for a in ours] == [(b.shape, b.dtype) for b in alone]
    padded = stands_for(ours, bits, ours[1].shape[1] * 32)
    assert (padded[:, shape[1] :] == 0).all()


def test_neither_weights_nor_moments_may_hold_nan():
    rows, hessian = weights(2, 16), np.eye(16)
    hessian[3, 3] = np.nan
    with pytest.raises(QuantizationError, match=r"h\.0 holds NaN or infinity"):
        gptq("h.0", np.full_like(rows, np.inf), np.eye(16), 4, 16)
    with pytest.raises(QuantizationError, match=r"h\.0 is multiplied by holds NaN or infinity"):
        gptq("h.0", rows, hessian, 4, 16)


def test_four_bits_are_rounded_by_what_the_text_needs_where_there_is_text(tmp_path):
    export(tiny.gpt2(n_embd=64, n_head=4), tmp_path / "fp32", tokenizer=tiny.bpe(), check=False)
    texts = [
        "the state of the union is strong",
        "a whale is a fish with a tail",
        "fellow citizens of the senate",
    ] * 8
    records = [
        read_bundle(quantize(tmp_path / "fp32", tmp_path / name, recipe="int4", data=data)).manifest
        for name, data in (("random", None), ("text", texts))
    ]
    weights = [(tmp_path / name / "model.onnx.data").read_bytes() for name in ("random", "text")]
    assert len(weights[0]) == len(weights[1]) and weights[0] != weights[1]
    assert records[0].recipe["body"] == records[1].recipe["body"]
