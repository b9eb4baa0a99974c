"""Matrices that were quantized before they came here: blocks of whole numbers, with scales and maybe shifts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from torchless.export.weights import Float

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Blocks:
    """A matrix [N,K]: (codes - 2**(bits-1)) * scale + shift, the latter two by block of `size` along K.

    codes: uint8 [N,K/size,size], below 2**bits. scale, shift: float32 [N,K/size]; no shift is 0.
    """

    bits: int  # 4 or 8
    codes: Bytes
    scale: Float
    shift: Float | None = None

    @property
    def size(self) -> int:
        return int(self.codes.shape[2])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.codes), self.codes.shape[1] * self.size

    def values(self) -> Float:
        """float32 [N,K]."""
        made: Float = (self.codes.astype(np.float32) - (1 << (self.bits - 1))) * self.scale[..., None]
        if self.shift is not None:
            made += self.shift[..., None]
        return made.reshape(self.shape)

    def stands_for(self, array: Float) -> bool:
        """Whether these are the array's numbers, but for the last bit of a sum."""
        if array.shape != self.shape:
            return False
        return bool(np.abs(self.values() - array).max(initial=0) <= 1e-6 * np.abs(array).max(initial=0))

    def packed(self) -> Bytes:
        """As MatMulNBits has them, [N,K/size,size*bits/8]: of 4 bits the earlier is in the lower half."""
        if self.bits == 8:
            return self.codes
        joined: Bytes = self.codes[..., 0::2] | (self.codes[..., 1::2] << np.uint8(4))
        return joined

    def widened(self, bits: int, size: int) -> Blocks:
        """The same numbers in as many bits or more, and in blocks of a size that divides the own."""
        codes = self.codes + np.uint8((1 << (bits - 1)) - (1 << (self.bits - 1)))
        times = self.size // size
        shift = None if self.shift is None else np.repeat(self.shift, times, axis=1)
        return Blocks(bits, codes.reshape(len(codes), -1, size), np.repeat(self.scale, times, axis=1), shift)

    def in_halves(self, heads: int) -> Blocks:
        """With rows in halves of heads, where llama.cpp has them in pairs of neighbours."""
        order = np.arange(len(self.codes)).reshape(heads, -1, 2).swapaxes(1, 2).ravel()
        shift = None if self.shift is None else self.shift[order]
        return replace(self, codes=self.codes[order], scale=self.scale[order], shift=shift)


def join(parts: Sequence[Blocks]) -> Blocks:
    """The rows of all; of unlike forms the widest code and the smallest block."""
    bits, size = max(one.bits for one in parts), min(one.size for one in parts)
    alike = [one.widened(bits, size) for one in parts]
    shifts = None
    if any(one.shift is not None for one in alike):
        shifts = np.concatenate([np.zeros_like(one.scale) if one.shift is None else one.shift for one in alike])
    return Blocks(
        bits, np.concatenate([one.codes for one in alike]), np.concatenate([one.scale for one in alike]), shifts
    )
