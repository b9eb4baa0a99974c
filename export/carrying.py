"""A builder that keeps a checkpoint's own blocks: products and lookups read them, and nothing is rounded again.

A family file asks for float weights as ever. Where those that it hands on are the numbers of blocks that the source
has, the operators that read them become MatMulNBits and GatherBlockQuantized. Letters as in blocks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.export.blocks import Blocks, join
from torchless.export.builder import CONTRIB, Builder, Value

EXACT = 1  # MatMulNBits' accuracy_level: activations stay float32; 4 rounds them to 8 bits by block

# Matrices that family files make of several, by the ends of their names.
JOINED = {
    "self_attn.qkv.weight": tuple(f"self_attn.{name}_proj.weight" for name in "qkv"),
    "self_attn.output.weight": ("self_attn.o_proj.weight",),
    "mlp.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}


class CarryingBuilder(Builder):
    """A fused graph. sources: the blocks of a checkpoint's tensors, by name without the body's prefix.

    level: MatMulNBits' accuracy_level.
    """

    def __init__(self, sources: Mapping[str, Callable[[], Blocks]], *, level: int) -> None:
        super().__init__("fused")
        self._sources = sources
        self._level = level
        self.carried: dict[str, Blocks] = {}

    def weight(self, name: str, array: npt.NDArray[Any]) -> Value:
        if name in self.carried:
            return name
        found = self._find(name)
        if found is None or not (found.stands_for(array.T) or found.stands_for(array)):
            return super().weight(name, array)
        self.carried[name] = found
        return name

    def ops(self, kind: str, *inputs: Value, outputs: int, domain: str = "", **attributes: Any) -> list[Value]:
        found = [self.carried.get(value) for value in inputs]
        if kind == "Gather" and found[0] is not None:
            return [self._look_up(inputs[0], found[0], inputs[1])]
        if kind in ("MatMul", "FusedMatMul") and found[1] is not None:
            return [self._multiply(inputs[0], inputs[1], found[1])]
        return super().ops(kind, *inputs, outputs=outputs, domain=domain, **attributes)

    def _find(self, name: str) -> Blocks | None:
        for end, parts in JOINED.items():
            if name.endswith(end):
                names = [name.removesuffix(end) + part for part in parts]
                break
        else:
            names = [name]
        if not all(part in self._sources for part in names):
            return None
        return join([self._sources[part]() for part in names])

    def _multiply(self, x: Value, name: str, blocks: Blocks) -> Value:
        """x [..,K] times the transpose of the matrix -> [..,N]."""
        rows, length = blocks.shape
        y = super().ops(
            "MatMulNBits", x, self._codes(name, blocks), self._scales(name, blocks), outputs=1, domain=CONTRIB,
            K=length, N=rows, bits=blocks.bits, block_size=blocks.size, accuracy_level=self._level,
        )[0]  # fmt: skip
        if blocks.shift is None:
            return y
        # What is added to a whole block is the sum of its x times the shift.
        shift = super().weight(f"{name}.shift", blocks.shift.T)
        return self.op("Add", y, self.op("MatMul", self._sums(x, blocks), shift))

    def _sums(self, x: Value, blocks: Blocks) -> Value:
        """[..,K] -> [..,K/size]."""
        key = ("sums", x, blocks.size)
        if (made := self.once(key)) is not None:
            return made
        apart = self.op("Reshape", x, self.constant([0, 0, -1, blocks.size], np.int64))
        total = self.op("ReduceSum", apart, self.constant([-1], np.int64), keepdims=0)
        return self.once(key, total) or total

    def _look_up(self, name: str, blocks: Blocks, ids: Value) -> Value:
        """Rows [B,S,K] by ids [B,S]."""
        # The same bytes under names of their own: a product's codes are packed anew at load, and would stay in
        # memory twice; and the operator wants scales of as many dimensions as codes.
        codes = super().weight(f"{name}.rows", self._tensors[self._codes(name, blocks)])
        scales = super().weight(f"{name}.rows.scale", self._tensors[self._scales(name, blocks)][..., None])
        y = super().ops(
            "GatherBlockQuantized", codes, ids, scales, outputs=1, domain=CONTRIB,
            bits=blocks.bits, block_size=blocks.size, gather_axis=0, quantize_axis=2,
        )[0]  # fmt: skip
        if blocks.shift is not None:
            each = super().op("Gather", super().weight(f"{name}.rows.shift", blocks.shift), ids, axis=0)
            y = self.op("Add", y, self.op("Unsqueeze", each, self.constant([-1], np.int64)))
        return self.op("Reshape", y, self.constant([0, 0, blocks.shape[1]], np.int64))

    def _codes(self, name: str, blocks: Blocks) -> Value:
        return super().weight(f"{name}.q{blocks.bits}", blocks.packed())

    def _scales(self, name: str, blocks: Blocks) -> Value:
        return super().weight(f"{name}.q{blocks.bits}.scale", blocks.scale)
