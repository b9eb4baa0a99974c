"""4-bit blocks that make up for each other's rounding: GPTQ (Frantar et al., 2022, arXiv:2210.17323).

Rounding a weight shifts what its sum gives; the weights of the same sum that are not rounded yet can take most of
that back, as far as the inputs are correlated. H is what says so: the mean of x xᵀ over the tokens of a text. The
output error of one row is (w - ŵ) H (w - ŵ)ᵀ, and the rows (the sums) are independent.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.quantize.hqq import hqq
from torchless.quantize.weights import TINY, Bytes, Float, check_finite, in_blocks, pack, unpack

Moments = npt.NDArray[np.floating[Any]]
SHARES = (1.0, 0.9, 0.8, 0.7)  # of what a block reaches on either side
LAZY = 64  # columns whose errors reach the later ones in one product


def gptq(
    name: str, rows: Float, hessian: Moments, bits: int, size: int, damp: float = 0.05
) -> tuple[Bytes, Float, Bytes]:
    """float32 [N,K] and the mean of x xᵀ [K,K] -> codes, scale and zero points in the layout of `hqq`.

    The output error of every row is at most that of `hqq`, whose row is taken where it would be more. Channels are
    rounded in falling order of their mean square, with the scales of the blocks settled before, so that the layout
    stays as it is (the paper's "static groups"). `damp` > 0 is the share of the mean of H's diagonal that is added
    to it: a little follows the text closely, much comes near to rounding each weight by itself, as a channel that
    never fires always is. NaN and infinity are a QuantizationError that bears the name.
    """
    check_finite(name, rows)
    check_finite(f"what {name} is multiplied by", hessian)
    alone = hqq(name, rows, bits, size)
    count, length = rows.shape
    damped = _damped(hessian, damp)
    padded = in_blocks(rows, size)
    importance = np.zeros(padded.shape[1:], np.float32)
    importance.reshape(-1)[:length] = damped.diagonal() / damped.diagonal().max()
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not better
        scale, zero = _grid(padded, importance, (1 << bits) - 1)
        codes = np.repeat(zero[..., None], size, axis=-1)  # the padding is zero
        codes.reshape(count, -1)[:, :length] += _round_in_turn(rows, scale, zero, damped, (1 << bits) - 1, size)
        ours = pack(codes.astype(np.uint8), bits), scale, pack(zero.astype(np.uint8), bits)
        better = _error(rows, ours, hessian, bits) < _error(rows, alone, hessian, bits)
    return (
        np.where(better[:, None, None], ours[0], alone[0]),
        np.where(better[:, None], ours[1], alone[1]),
        np.where(better[:, None], ours[2], alone[2]),
    )


def _damped(hessian: Moments, damp: float) -> npt.NDArray[np.float64]:
    damped = hessian.astype(np.float64)
    mean = float(damped.diagonal().mean()) or 1.0
    damped[np.diag_indices_from(damped)] += damp * mean
    return damped


def _grid(padded: Float, importance: Float, top: int) -> tuple[Float, Float]:
    """Scale and zero point of every block of [N,B,size] with the least squared error, each channel's by its mean
    square: of narrower and narrower ranges, from either end."""
    low, high = np.minimum(padded.min(axis=-1), 0), np.maximum(padded.max(axis=-1), 0)
    scale, zero = np.full_like(low, TINY), np.zeros_like(low)  # what stays where every square is infinite
    least = np.full(low.shape, np.inf, np.float32)
    for below, above in itertools.product(SHARES, SHARES):
        tried = np.maximum((above * high - below * low) / top, TINY)
        start = np.clip(np.rint(-below * low / tried), 0, top)
        error = np.clip(np.rint(padded / tried[..., None]), -start[..., None], top - start[..., None])
        error *= tried[..., None]
        error -= padded
        squared = np.einsum("nbi,nbi,bi->nb", error, error, importance)
        better = squared < least
        scale[better], zero[better], least[better] = tried[better], start[better], squared[better]
    return scale, zero


def _round_in_turn(
    rows: Float, scale: Float, zero: Float, hessian: npt.NDArray[np.float64], top: int, size: int
) -> Float:
    """Steps from zero [N,K]: each channel rounded, its error handed on to those that follow (algorithm 1)."""
    order = np.argsort(-hessian.diagonal(), kind="stable")
    upper = _inverse_factor(hessian[np.ix_(order, order)]).astype(np.float32)
    left = np.ascontiguousarray(rows[:, order].T)  # [K,N], what is still to be rounded
    scales, zeros = np.ascontiguousarray(scale.T), np.ascontiguousarray(zero.T)  # [B,N]
    whole = np.empty_like(left)
    for start in range(0, len(left), LAZY):
        stop = min(start + LAZY, len(left))
        errors = np.empty_like(left[start:stop])
        for column in range(start, stop):
            step, start_code = scales[order[column] // size], zeros[order[column] // size]
            whole[column] = np.clip(np.rint(left[column] / step), -start_code, top - start_code)
            error = (left[column] - whole[column] * step) / upper[column, column]
            left[column + 1 : stop] -= upper[column, column + 1 : stop, None] * error
            errors[column - start] = error
        left[stop:] -= upper[start:stop, stop:].T @ errors
    codes = np.empty_like(rows)
    codes[:, order] = whole.T
    return codes


def _inverse_factor(hessian: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The upper U [K,K] with H⁻¹ = Uᵀ U: the Cholesky factor of H taken from its last row up, inverted."""
    lower = np.linalg.cholesky(hessian[::-1, ::-1])
    return np.ascontiguousarray(np.linalg.inv(lower)[::-1, ::-1])


def _error(
    rows: Float, quantized: tuple[Bytes, Float, Bytes], hessian: Moments, bits: int
) -> npt.NDArray[np.float64]:
    """What rounding adds to the mean square of each row's output [N]."""
    codes, scale, zero = quantized
    error = (rows - unpack(codes, scale, bits, rows.shape[1], zero)).astype(np.float64)
    return np.asarray(((error @ hessian) * error).sum(axis=1), np.float64)
