"""Which layers and matrices of a model bear a recipe badly: each is quantized alone, all else stays in float32."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torchless.errors import QuantizationError
from torchless.quantize.job import Data, Job
from torchless.quantize.recipe_file import find_recipe
from torchless.quantize.recipes import Blocks, Keep, Recipe, Scheme, Static, describe
from torchless.quantize.weights import block_size

Progress = Callable[[str, int, int], object]  # what is done, how much of it so far, of how much

LAYER = re.compile(r"(.*?\.\d+)\.")  # h.3. of h.3.mlp.c_fc.weight, encoder.layer.3. of BERT's


@dataclass(frozen=True)
class Sensitivity:
    """What it does to quantize one part of a model alone.

    name: of a matrix, or of a layer, whose matrices are then quantized together. layer: that it belongs to; the
    same as `name` for a layer, and for a matrix outside of all, such as the embedding. shape: of a matrix, () of
    a layer. scheme: of each of its matrices as in a recipe file, once if they have the same. saved: bytes. error:
    how far the outputs move, in `metric`: "kl", the mean KL divergence of the float32 probabilities to the new ones
    in nats a token, a text, or an end of an answer; "cosine", the mean cosine error of vectors; "squared", the
    squared error over squared outputs. loss: the rise of cross-entropy in nats a token (text-generation, fill-mask)
    or a text with a label; None where the data does not say what is right.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    scheme: tuple[dict[str, Any], ...]
    saved: int
    error: float
    metric: str
    loss: float | None

    @property
    def whole(self) -> bool:
        """A layer, or a matrix outside of all: together these are the model."""
        return self.name == self.layer


@dataclass(frozen=True)
class Part:
    """A matrix as the recipe has it."""

    name: str
    shape: tuple[int, int]  # as it lies
    sums: int  # how many sums it gives, the N of a product
    role: str
    scheme: Scheme
    floats: int = 32  # bits of the recipe's, such as of scales
    looked_up: bool = False  # row by row: then it has no zero points

    @property
    def saved(self) -> int:
        """Bytes of float32 less those of the scheme."""
        weights = self.shape[0] * self.shape[1]
        if isinstance(self.scheme, Keep):
            return weights * (32 - self.floats) // 8
        if not isinstance(self.scheme, Blocks):
            return 3 * weights - (5 if isinstance(self.scheme, Static) else 4) * self.sums  # scales, zero points
        length, bits = weights // self.sums, self.scheme.bits
        size = block_size(length, self.scheme.size)
        blocks = -(-length // size)
        zeros = -(-blocks * bits // 8) if self.scheme.method in ("gptq", "hqq") and not self.looked_up else 0
        return 4 * weights - self.sums * (blocks * (size * bits + self.floats) // 8 + zeros)


def sensitivity(
    bundle: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | Recipe = "int8",
    data: Data | None = None,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Sensitivity, ...]:
    """Every layer, then every matrix that stands in one, each in the order of the model.

    data: texts like those that the model reads, or a file of them (torchless.quantize.data); about 2,000 tokens of
    it are read. Without it random tokens are, which rank matrices much the same, and no loss is known.

    Raises QuantizationError for what cannot be quantized and for a recipe that quantizes nothing, InputError for
    data that does not fit.
    """
    chosen = find_recipe(recipe)
    job = Job(bundle, data, verify=False)
    chosen = job.fit(chosen)
    parts = parts_of(job, chosen)
    if not parts:
        raise QuantizationError(
            f"{chosen.name} leaves every matrix of {job.source.path} in float: nothing to measure"
        )
    layers: dict[str, list[Part]] = {}
    for part in parts:
        layers.setdefault(layer_of(part.name), []).append(part)
    groups = [*layers.items(), *((part.name, [part]) for part in parts if layer_of(part.name) != part.name)]
    return measure(job, chosen, groups, progress)


def parts_of(job: Job, recipe: Recipe) -> list[Part]:
    """The matrices that the recipe quantizes, in the order of the model."""
    parts = []
    for matrix in job.matrices():
        sums = matrix.shape[0 if matrix.transposed else 1]
        scheme = recipe.scheme(matrix.name, matrix.role)
        if not isinstance(scheme, Keep):
            part = Part(matrix.name, matrix.shape, sums, matrix.role, scheme, recipe.floats, matrix.looked_up)
            parts.append(part)
    return parts


def measure(
    job: Job, recipe: Recipe, groups: Sequence[tuple[str, list[Part]]], progress: Progress
) -> tuple[Sensitivity, ...]:
    """Each group, with its name, quantized alone."""
    from torchless.quantize.judge import Judge

    progress("measuring sensitivity", 0, len(groups))
    judge = Judge.on(job.source, job.graph, job.examples)
    found = []
    for done, (name, parts) in enumerate(groups, 1):
        draft, report = job.rewritten(only(recipe, parts))
        error, loss = judge(draft.in_memory(), signed_int8=report.signed_int8)
        schemes = dict.fromkeys(part.scheme for part in parts)
        alone = name == parts[0].name
        found.append(
            Sensitivity(
                name,
                layer_of(name) if alone else name,
                parts[0].shape if alone else (),
                tuple(describe(scheme) for scheme in schemes),
                sum(part.saved for part in parts),
                error,
                judge.metric,
                loss,
            )
        )
        progress("measuring sensitivity", done, len(groups))
    return tuple(found)


def only(recipe: Recipe, parts: Sequence[Part]) -> Recipe:
    """The recipe for these, and float32 for all else."""
    matrices = {part.name: part.scheme for part in parts} | {"*": Keep()}
    return dataclasses.replace(recipe, floats=32, matrices=matrices)


def layer_of(name: str) -> str:
    """encoder.layer.3 of encoder.layer.3.output.dense.weight; a name without a number stands for itself."""
    found = LAYER.match(name)
    return found[1] if found else name
