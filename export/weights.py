"""A checkpoint's tensors by name, read as float32 when asked for, and a record of those nobody asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.errors import ExportError

Float = npt.NDArray[np.float32]
Read = Callable[[], npt.NDArray[Any]]


class Weights:
    """Tensors under a prefix. `w.under("h.0")["attn.c_attn.weight"]` reads `h.0.attn.c_attn.weight`."""

    def __init__(
        self, tensors: Mapping[str, Read], where: str, prefix: str = "", used: set[str] | None = None
    ) -> None:
        self._tensors = tensors
        self._where = where
        self._prefix = prefix
        self._used: set[str] = set() if used is None else used

    def under(self, prefix: str) -> Weights:
        return Weights(self._tensors, self._where, self.name(prefix) + ".", self._used)

    def name(self, name: str) -> str:
        """The full name in the checkpoint."""
        return self._prefix + name

    def __contains__(self, name: str) -> bool:
        return self.name(name) in self._tensors

    def __getitem__(self, name: str) -> Float:
        full = self.name(name)
        if full not in self._tensors:
            raise ExportError(f"{self._where} lacks the tensor {full}: is it the model that config.json says?")
        self._used.add(full)
        array = self._tensors[full]()
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise ExportError(f"{self._where}: {full} is {array.dtype}: only float tensors can be exported")
        array = np.ascontiguousarray(array, dtype=np.float32)
        if not np.isfinite(array).all():
            raise ExportError(f"{self._where}: {full} holds NaN or infinity: the checkpoint is damaged")
        return array

    def shaped(self, name: str, *shape: int) -> Float:
        """The tensor, which must have this shape: a config and weights that disagree are never exported."""
        array = self[name]
        if array.shape != shape:
            raise ExportError(
                f"{self._where}: {self.name(name)} has shape {list(array.shape)}, "
                f"config.json makes it {list(shape)}"
            )
        return array

    def everything(self) -> dict[str, npt.NDArray[Any]]:
        """All tensors by name, as they lie in the checkpoint."""
        return {name: read() for name, read in self._tensors.items()}

    def check_copy(self, name: str, original: Float) -> None:
        """A second copy of a tied tensor may be there, but must hold the same: else which one is meant?"""
        if name in self and not np.array_equal(self[name], original):
            raise ExportError(
                f"{self._where}: config.json ties {self.name(name)} to another tensor, but their values differ: "
                "set tie_word_embeddings to false if it is a tensor of its own, or remove it"
            )

    def renamed(self, rules: Iterable[tuple[str, str]]) -> Weights:
        """The same tensors with old names rewritten by (pattern, replacement), for checkpoints of older days."""
        rules = list(rules)
        renamed: dict[str, Read] = {}
        for name, read in self._tensors.items():
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            renamed[name] = read
        return Weights(renamed, self._where)

    def holds(self, layer: str) -> bool:
        """Whether any tensor is of this layer, whatever stands before its name."""
        return any(f".{layer}." in f".{name}" for name in self._tensors)

    @property
    def layers(self) -> list[str]:
        """What the names begin with."""
        return sorted({name.split(".")[0] for name in self._tensors})

    def with_layer(self, mine: str, own: str) -> Weights:
        """The same with the layer `mine` under the family's own name, in the place of the one that has it."""
        if not any(name.startswith(f"{mine}.") for name in self._tensors):
            raise ExportError(f"{self._where} has no layer {mine!r} (it has: {', '.join(self.layers)})")
        others = {
            name: read for name, read in self._tensors.items() if mine == own or not name.startswith(f"{own}.")
        }
        return Weights(others, self._where).renamed([(rf"^{re.escape(mine)}\.", f"{own}.")])

    def forgive(self, *patterns: str) -> None:
        """Names that may stay unused: buffers and heads that the export leaves out on purpose."""
        for name in self._tensors:
            if any(re.fullmatch(pattern, name) for pattern in patterns):
                self._used.add(name)

    def check_all_used(self) -> None:
        left = sorted(set(self._tensors) - self._used)
        if left:
            some = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
            raise ExportError(
                f"{self._where}: these tensors have no place in the graph: {some}: remove them, or if one is the "
                "last layer of a head of your own, give its name as head= (--head)"
            )
