"""What may be lost and taken, which recipes are tried for which machine, and what is told of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torchless.arguments import check_count, check_name
from torchless.errors import InputError
from torchless.quantize.recipes import RECIPES, Recipe
from torchless.quantize.sensitivity import Progress

DEFAULT_LOSS = 0.005


@dataclass(frozen=True)
class Target:
    """The recipes for a machine, those that are fastest there first, for an encoder and for a decoder."""

    encoder: tuple[str, ...] = ()
    decoder: tuple[str, ...] = ()


# 4 bits are less to read for the next token, and more to unpack for many: an encoder of 12 layers takes twice as
# long with blocks as with columns; GPT-2 decodes half as fast again with 4 bits as with 8, with VNNI and without.
CPU = Target(encoder=("int8", "int8-block", "int4", "int4-all"), decoder=("int4-all", "int4", "int8", "int8-block"))
# A GPU computes in float16, and blocks are there for what does not fit.
GPU = ("fp16", "fp16-int8", "fp16-int4")
STANDARD = ("int8-qdq", "fp16-standard")  # for compilers of onnx's own operators
TARGETS = {
    "cpu": CPU,
    "cpu-avx2": CPU,
    "cpu-vnni": CPU,
    "cuda": Target(encoder=GPU, decoder=GPU),
    "tensorrt": Target(encoder=STANDARD, decoder=STANDARD),
    "openvino": Target(encoder=STANDARD, decoder=STANDARD),
}
HERE = CPU  # without a target: the order is then measured
# Without data nobody knows what is lost: the order of how much that usually is.
FAITHFUL = ("int8", "int8-block", "int4", "int4-all", *GPU, "fp16-standard", "int8-qdq")


def recipe_for(target: str | None, *, calibrated: bool) -> str:
    """The recipe to take for a target where none is named; calibrated: whether there is text for ranges."""
    if target is None:
        return "int8"
    check_name("target", target, TARGETS)
    if TARGETS[target].encoder == STANDARD and not calibrated:
        return "fp16-standard"
    return {CPU: "int8"}.get(TARGETS[target], TARGETS[target].encoder[0])


@dataclass(frozen=True)
class Budget:
    """max_loss: a share from 0 to 1, see quantize. max_size: bytes on disk. target: in TARGETS, None: this machine.

    None for a limit that is not set.
    """

    max_loss: float | None = None
    max_size: int | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        loss = self.max_loss
        if loss is not None:
            number = isinstance(loss, (int, float)) and not isinstance(loss, bool) and math.isfinite(loss)
            if not number or not 0 <= loss <= 1:
                raise InputError(f"max_loss={loss!r}: give a share from 0 to 1, such as 0.005 for half a percent")
        if self.max_size is not None:
            check_count("max_size", self.max_size)
        if self.target is not None:
            check_name("target", self.target, TARGETS)

    @property
    def limited(self) -> bool:
        return self.max_loss is not None or self.max_size is not None

    def __str__(self) -> str:
        limits = [] if self.max_loss is None else [f"a loss of {100 * self.max_loss:g} %"]
        limits += [] if self.max_size is None else [f"{self.max_size:,} bytes"]
        return " and ".join(limits) or "no budget"

    def recipes(self, *, decodes: bool) -> list[Recipe]:
        """Those that are tried, in order."""
        target = HERE if self.target is None else TARGETS[self.target]
        names = target.decoder if decodes else target.encoder
        if self.max_loss is None:
            names = tuple(sorted(names, key=FAITHFUL.index))
        return [RECIPES[name] for name in names]


@dataclass(frozen=True)
class Told:
    """What is told while a recipe is chosen. line: a sentence. progress: what is done, how much, of how much."""

    line: Callable[[str], object] = lambda line: None
    progress: Progress = lambda what, done, total: None
