"""ggml's blocks as codes, scales and shifts: the same numbers, laid out anew.

Every row of a tensor is whole blocks. d, m: half-precision numbers of a block; a K type has 256 numbers a block,
whose parts have scales of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from torchless.export.blocks import Blocks, Bytes
from torchless.export.weights import Float


def _halves(block: Bytes, at: int) -> Float:
    """[..,bytes] -> the half-precision number at this byte of each block, as float32 [..]."""
    return np.ascontiguousarray(block[..., at : at + 2]).view("<f2")[..., 0].astype(np.float32)


def _nibbles(pairs: Bytes) -> Bytes:
    """[..,n] -> [..,2n]: the lower halves, then the upper ones."""
    return np.concatenate([pairs & np.uint8(15), pairs >> np.uint8(4)], axis=-1)


def _q8_0(block: Bytes) -> Blocks:
    """d * q, q of -127 to 127."""
    return Blocks(8, block[..., 2:] + np.uint8(128), _halves(block, 0))


def _q4_0(block: Bytes) -> Blocks:
    """d * (q - 8)."""
    return Blocks(4, _nibbles(block[..., 2:]), _halves(block, 0))


def _q4_1(block: Bytes) -> Blocks:
    """d * q + m."""
    d, m = _halves(block, 0), _halves(block, 2)
    return Blocks(4, _nibbles(block[..., 4:]), d, m + 8 * d)


def _q5(block: Bytes, at: int) -> Bytes:
    """Codes of 5 bits: 4 bytes of upper bits, then 16 of lower halves."""
    upper = np.unpackbits(block[..., at : at + 4], axis=-1, bitorder="little")
    codes: Bytes = _nibbles(block[..., at + 4 :]) | (upper << np.uint8(4))
    return codes


def _q5_0(block: Bytes) -> Blocks:
    """d * (q - 16)."""
    return Blocks(8, _q5(block, 2) + np.uint8(112), _halves(block, 0))


def _q5_1(block: Bytes) -> Blocks:
    """d * q + m."""
    return Blocks(8, _q5(block, 4) + np.uint8(128), _halves(block, 0), _halves(block, 2))


def _parts(block: Bytes) -> tuple[Float, Float]:
    """Of Q4_K and Q5_K: scales and minima [..,8] of the parts of 32, each of 6 bits times the block's own."""
    packed = block[..., 4:16]
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    least = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    return _halves(block, 0)[..., None] * scale, _halves(block, 2)[..., None] * least


def _q4_k(block: Bytes) -> Blocks:
    """d * scale * q - dmin * minimum, by parts of 32."""
    scale, least = _parts(block)
    codes = _nibbles(block[..., 16:].reshape(*block.shape[:-1], 4, 32))
    return _flat(Blocks(4, codes.reshape(*scale.shape, 32), scale, 8 * scale - least))


def _q5_k(block: Bytes) -> Blocks:
    """The same with a fifth bit: bit i of 32 bytes is that of part i."""
    scale, least = _parts(block)
    lower = _nibbles(block[..., 48:].reshape(*block.shape[:-1], 4, 32)).reshape(*scale.shape, 32)
    upper = (block[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    return _flat(Blocks(8, (lower | (upper << np.uint8(4))) + np.uint8(128), scale, -least))


def _q6_k(block: Bytes) -> Blocks:
    """d * scale * (q - 32), by parts of 16; two halves of 128 numbers, of four runs of 32."""
    lower = block[..., :128].reshape(*block.shape[:-1], 2, 2, 32)
    lower = np.concatenate([lower & np.uint8(15), lower >> np.uint8(4)], axis=-2)  # [..,2,4,32]
    upper = block[..., 128:192].reshape(*block.shape[:-1], 2, 1, 32)
    upper = (upper >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & np.uint8(3)
    scale = np.ascontiguousarray(block[..., 192:208]).view(np.int8) * _halves(block, 208)[..., None]
    codes = (lower | (upper << np.uint8(4))) + np.uint8(96)
    return _flat(Blocks(8, codes.reshape(*scale.shape, 16), scale))


def _flat(blocks: Blocks) -> Blocks:
    """[N,blocks,parts,..] -> [N,blocks*parts,..]."""
    rows, size = len(blocks.codes), blocks.codes.shape[-1]
    shift = None if blocks.shift is None else blocks.shift.reshape(rows, -1)
    return Blocks(blocks.bits, blocks.codes.reshape(rows, -1, size), blocks.scale.reshape(rows, -1), shift)


# How many bytes a block has, and what it is.
FORMS: dict[str, tuple[int, Callable[[Bytes], Blocks]]] = {
    "Q8_0": (34, _q8_0),
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}


def blocks_of(kind: str, raw: Bytes) -> Blocks:
    """A tensor of a type in FORMS, its bytes [N,bytes of a row], as blocks of the same numbers."""
    size, form = FORMS[kind]
    return form(raw.reshape(len(raw), -1, size))
