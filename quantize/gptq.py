"""4-bit blocks that make up for each other's rounding: GPTQ (Frantar et al., 2022, arXiv:2210.17323).

Rounding a weight shifts what its sum gives; the weights of the same sum that are not rounded yet can take most of
that back, as far as the inputs are correlated. H is what says so: the mean of x xᵀ over the tokens of a text. The
output error of one row is (w - ŵ) H (w - ŵ)ᵀ, and the rows (the sums) are independent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.quantize.weights import SHARES, TINY, Bytes, Float, blocks, check_finite, unpack

Moments = npt.NDArray[np.floating[Any]]
LAZY = 64  # columns whose errors reach the later ones in one product


def gptq(name: str, rows: Float, hessian: Moments, bits: int, size: int, damp: float = 0.05) -> tuple[Bytes, Float]:
    """float32 [N,K] and the mean of x xᵀ [K,K] -> codes and scale in the layout of `weights.blocks`.

    The output error of every row is at most that of `blocks`, whose row is taken where it would be more. Channels
    are rounded in falling order of their mean square, with the scales of the blocks settled before, so that the
    layout stays as it is (the paper's "static groups"). `damp` > 0 is the share of the mean of H's diagonal
    that is added to it: a little follows the text closely, much comes near to rounding to nearest, as a channel
    that never fires is always rounded. NaN and infinity are a QuantizationError that bears the name.
    """
    check_finite(name, rows)
    check_finite(f"what {name} is multiplied by", hessian)
    nearest = blocks(name, rows, bits, size)
    count, length = rows.shape
    middle = 1 << (bits - 1)
    damped = _damped(hessian, damp)
    padded = np.zeros((count, -(-length // size), size), np.float32)
    padded.reshape(count, -1)[:, :length] = rows
    importance = np.zeros(padded.shape[1:], np.float32)
    importance.reshape(-1)[:length] = damped.diagonal() / damped.diagonal().max()
    scale = _scales(padded, importance, middle)
    codes = np.zeros(padded.shape, np.float32)
    codes.reshape(count, -1)[:, :length] = _round_in_turn(rows, scale, damped, middle, size)
    ours = _pack(codes, middle), scale
    better = _error(rows, ours, hessian, bits) < _error(rows, nearest, hessian, bits)
    return (
        np.where(better[:, None, None], ours[0], nearest[0]),
        np.where(better[:, None], ours[1], nearest[1]),
    )


def _damped(hessian: Moments, damp: float) -> npt.NDArray[np.float64]:
    damped = hessian.astype(np.float64)
    mean = float(damped.diagonal().mean()) or 1.0
    damped[np.diag_indices_from(damped)] += damp * mean
    return damped


def _scales(padded: Float, importance: Float, middle: int) -> Float:
    """The scale of every block of [N,B,size] with the least squared error, each channel's by its mean square."""
    largest, smallest = padded.max(axis=-1), padded.min(axis=-1)
    plain = (np.where(largest > -smallest, largest, smallest) / -middle).astype(np.float32)
    plain[np.abs(plain) < TINY] = TINY
    best: Float = plain.copy()
    least = np.full(plain.shape, np.inf, np.float32)
    for share in SHARES:
        tried = plain * np.float32(share)
        tried[np.abs(tried) < TINY] = TINY
        error = np.clip(np.rint(padded / tried[..., None]), -middle, middle - 1)
        error *= tried[..., None]
        error -= padded
        with np.errstate(over="ignore"):
            squared = np.einsum("nbi,nbi,bi->nb", error, error, importance)
        better = squared < least
        best[better], least[better] = tried[better], squared[better]
    return best


def _round_in_turn(rows: Float, scale: Float, hessian: npt.NDArray[np.float64], middle: int, size: int) -> Float:
    """Whole numbers [N,K]: each channel rounded, its error handed on to those that follow (algorithm 1)."""
    order = np.argsort(-hessian.diagonal(), kind="stable")
    upper = _inverse_factor(hessian[np.ix_(order, order)]).astype(np.float32)
    left = np.ascontiguousarray(rows[:, order].T)  # [K,N], what is still to be rounded
    scales = np.ascontiguousarray(scale.T)  # [B,N]
    whole = np.empty_like(left)
    for start in range(0, len(left), LAZY):
        stop = min(start + LAZY, len(left))
        errors = np.empty_like(left[start:stop])
        for column in range(start, stop):
            step = scales[order[column] // size]
            whole[column] = np.clip(np.rint(left[column] / step), -middle, middle - 1)
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


def _pack(codes: Float, middle: int) -> Bytes:
    packed: Bytes = (codes + middle).astype(np.uint8)
    return packed if middle > 8 else packed[..., 0::2] | (packed[..., 1::2] << np.uint8(4))


def _error(rows: Float, quantized: tuple[Bytes, Float], hessian: Moments, bits: int) -> npt.NDArray[np.float64]:
    """What rounding adds to the mean square of each row's output [N]."""
    error = (rows - unpack(*quantized, bits, rows.shape[1])).astype(np.float64)
    return np.asarray(((error @ hessian) * error).sum(axis=1), np.float64)
