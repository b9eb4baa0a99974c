"""Blocks fitted to the weights alone: HQQ, half-quadratic quantization (Badri and Shaji, 2023).

The error's p-norm with p < 1 is made small, so that a few large errors may stay where most become tiny. In turn a
shrinkage takes out of the error what is to stay large, and zero point and scale are fitted to the rest; no text is
needed. The paper keeps zero points as floats and leaves the scale as it was. Here zero points are whole numbers,
since MatMulNBits has fast kernels on the CPU for no others, and then it is the scale that has something to gain.
"""

from __future__ import annotations

import numpy as np

from torchless.quantize.weights import TINY, Bytes, Float, check_finite, in_blocks, pack

P, BETA, GROWTH = 0.7, 10.0, 1.01  # as the authors' own code has them
ROUNDS = 10  # as good as their twenty, once the scale is fitted too
PIECE = 1 << 18  # values that are fitted together


def hqq(name: str, rows: Float, bits: int, size: int) -> tuple[Bytes, Float, Bytes]:
    """float32 [N,K] -> codes uint8 [N,B,size*bits/8], scale [N,B], zero points uint8 [N,B*bits/8]; B = K/size up.

    A weight is (code - zero point) * scale, as `weights.unpack` has it. Codes and zero points of 4 bits lie two in
    a byte, the earlier in the lower half: the layout of MatMulNBits. The padding of the last block is zero. NaN and
    infinity are a QuantizationError that bears the name.
    """
    check_finite(name, rows)
    padded = in_blocks(rows, size)
    top = (1 << bits) - 1
    low, high = np.minimum(padded.min(axis=-1), 0), np.maximum(padded.max(axis=-1), 0)  # zero has a code of its own
    scale = np.maximum((high.astype(np.float64) - low) / top, TINY).astype(np.float32)
    zero = np.clip(np.rint(-low / scale), 0, top).astype(np.float32)
    step = max(1, PIECE // max(1, padded[0].size)) if len(padded) else 1
    for start in range(0, len(padded), step):
        part = slice(start, start + step)
        with np.errstate(over="ignore", invalid="ignore"):  # a step that overflows is not taken
            scale[part], zero[part] = _fit(padded[part], scale[part], zero[part], top)
    codes = _codes(padded, scale, zero, top)
    return pack(codes.astype(np.uint8), bits), scale, pack(zero.astype(np.uint8), bits)


def _codes(values: Float, scale: Float, zero: Float, top: int) -> Float:
    found: Float = np.clip(np.rint(values / scale[..., None] + zero[..., None]), 0, top)
    return found


def _fit(values: Float, scale: Float, zero: Float, top: int) -> tuple[Float, Float]:
    """Scale and zero point of each block of [N,B,size]: of those met on the way, the pair of the least p-norm."""
    best, best_zero = scale.copy(), zero.copy()
    least = np.full(scale.shape, np.inf, np.float32)
    beta = BETA
    for _ in range(ROUNDS):
        codes = _codes(values, scale, zero, top)
        error = values / scale[..., None] - (codes - zero[..., None])  # in steps: blocks of unlike size are alike
        size = np.abs(error)
        power = np.maximum(size, TINY) ** P
        loss = power.sum(axis=-1) * scale**P
        better = loss < least
        best[better], best_zero[better], least[better] = scale[better], zero[better], loss[better]
        large = np.maximum(size - power / np.maximum(size, TINY) / beta, 0) * np.sign(error)
        wanted = values - large * scale[..., None]
        zero = np.clip(np.rint((codes - wanted / scale[..., None]).mean(axis=-1)), 0, top)
        whole = codes - zero[..., None]
        squares = np.einsum("...i,...i->...", whole, whole)
        scale = np.maximum(np.einsum("...i,...i->...", wanted, whole) / np.maximum(squares, 1), TINY)
        beta *= GROWTH
    return best, best_zero
