"""float32 matrices to integers and scales: pure functions, each with the error bound that its test checks.

K is the length that a product sums over, N the number of sums: columns are [K,N], rows [N,K].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.errors import QuantizationError

Float = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

TINY = float(np.finfo(np.float32).tiny)  # a smaller scale is subnormal, and its reciprocal infinite
SHARES = [sign * share for share in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 1.05, 1.1) for sign in (1, -1)]
PIECE = 1 << 15  # values that are tried together
BLOCKS = (256, 128, 64, 32, 16)  # what MatMulNBits and GatherBlockQuantized take


def int8_columns(name: str, matrix: Float) -> tuple[npt.NDArray[np.int8], Float]:
    """float32 [K,N] -> int8 [K,N] and scale [N], with |matrix - int8 * scale| <= scale / 2, -128 never used.

    A column of zeros stays zero. NaN and infinity are a QuantizationError that bears the name.
    """
    check_finite(name, matrix)
    scale = np.maximum(np.abs(matrix).max(axis=0, initial=0) / 127, TINY).astype(np.float32)
    codes = matrix / scale
    np.rint(codes, out=codes)
    # The division may round up to one too many where the scale was rounded down.
    return np.clip(codes, -127, 127, out=codes).astype(np.int8), scale


def blocks(name: str, rows: Float, bits: int, size: int, *, search: bool = True) -> tuple[Bytes, Float]:
    """float32 [N,K] -> codes uint8 [N,K/size,size*bits/8] and scale [N,K/size], K/size rounded up.

    `unpack` gives back (code - 2**(bits-1)) * scale. At 8 bits that differs from the row by at most |scale| where
    |scale| is the block's largest magnitude / 128, and by half of that for every value but one opposite to the
    largest in sign and nearly as large. At 4 bits the scale is the one of least squared error among some larger
    and many smaller, which cut off the block's largest values. A block of zeros stays zero, and the padding of
    the last block is zero. This is the layout of MatMulNBits with its default zero point: for 4 bits the earlier
    value is in the lower half of the byte. NaN and infinity are a QuantizationError that bears the name.
    """
    check_finite(name, rows)
    padded = in_blocks(rows, size)
    middle = 1 << (bits - 1)
    # The value of the largest magnitude, sign kept, becomes code 0: one more step than a symmetric range
    # has, a fifth less squared error at 4 bits.
    largest, smallest = padded.max(axis=-1), padded.min(axis=-1)
    scale = np.where(largest > -smallest, largest, smallest) / -middle
    scale[np.abs(scale) < TINY] = TINY
    if bits == 4 and search:
        scale = _closest_scale(padded, scale)
    codes = (_round(padded, scale, middle) + middle).astype(np.uint8)
    return pack(codes, bits), scale.astype(np.float32)


def in_blocks(rows: Float, size: int) -> Float:
    """[N,K] -> a copy [N,K/size,size], K/size rounded up; what is added is zero."""
    count, length = rows.shape
    padded = np.zeros((count, -(-length // size), size), np.float32)
    padded.reshape(count, -1)[:, :length] = rows
    return padded


def _round(values: Float, scale: Float, middle: int) -> Float:
    codes: Float = values / scale[..., None]
    np.rint(codes, out=codes)
    np.clip(codes, -middle, middle - 1, out=codes)
    return codes


def _closest_scale(values: Float, scale: Float) -> Float:
    """For 4-bit blocks [N,B,size], the scale [N,B] of least squared error among shares of the one given.

    Either sign, since the range reaches one step further down than up. In pieces that stay in the cache.
    """
    best: Float = scale.copy()  # also where squares are infinite
    rows = max(1, PIECE // max(1, values[0].size)) if len(values) else 1
    for start in range(0, len(values), rows):
        block, first = values[start : start + rows], scale[start : start + rows]
        least, chosen = np.full(first.shape, np.inf, np.float32), best[start : start + rows]
        for share in SHARES:
            tried = first * np.float32(share)
            tried[np.abs(tried) < TINY] = TINY
            with np.errstate(over="ignore", invalid="ignore"):
                error = _round(block, tried, 8)
                error *= tried[..., None]
                error -= block
                squared = np.einsum("...i,...i->...", error, error)
            better = squared < least
            least[better], chosen[better] = squared[better], tried[better]
    return best


def pack(codes: Bytes, bits: int) -> Bytes:
    """Codes of 4 bits two in a byte along the last axis, the earlier in the lower half; of 8 bits as they are."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    packed: Bytes = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return packed


def unpack(codes: Bytes, scale: Float, bits: int, length: int, zero: Bytes | None = None) -> Float:
    """The float32 [N,length] that `blocks` stands for, or with zero points `hqq`."""
    values = _apart(codes, bits).astype(np.float32)
    if zero is None:
        values -= 1 << (bits - 1)
    else:
        values -= _apart(zero, bits)[:, : scale.shape[1], None]
    values *= scale[..., None]
    return np.ascontiguousarray(values.reshape(len(codes), -1)[:, :length])


def _apart(packed: Bytes, bits: int) -> Bytes:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def block_size(length: int, largest: int) -> int:
    """The block, `largest` at most, that pads rows of this length least; of equals the largest."""
    return min((size for size in BLOCKS if size <= largest), key=lambda size: (-length % size, -size))


def check_finite(name: str, matrix: npt.NDArray[Any]) -> None:
    if not np.isfinite(matrix).all():
        raise QuantizationError(f"{name} holds NaN or infinity, so its bundle is damaged: export a sound one")
