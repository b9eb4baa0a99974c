"""From a bundle in float32 to a smaller and faster one: `quantize(bundle, out)`."""

from __future__ import annotations

import os
from pathlib import Path

from torchless.errors import InputError, QuantizationError
from torchless.quantize.auto import choose
from torchless.quantize.budget import DEFAULT_LOSS, Budget, Told
from torchless.quantize.job import Data, Job
from torchless.quantize.recipe_file import find_recipe
from torchless.quantize.recipes import RECIPES, Recipe
from torchless.writing import new_bundle

__all__ = ["RECIPES", "quantize"]

AUTO = "auto"


def quantize(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | Recipe = "int8",
    data: Data | None = None,
    max_loss: float | None = None,
    max_size: int | None = None,
    target: str | None = None,
    overwrite: bool = False,
    told: Told | None = None,
) -> Path:
    """Write the bundle `out`: the fused graph of `bundle` with its matrices as integers, checked against it.

    recipe: a name in RECIPES, a file of one, or "auto". data: texts like those that the model will read, or a file
    of them (torchless.quantize.data), on which activations and losses are measured; without it activations are
    measured on random tokens. The manifest's `recipe` says what became of every matrix, its `parity` how far the
    outputs moved on fixed tokens.

    max_loss (needs data): the relative rise of perplexity of a generator or a masked language model; the accuracy
    or F1 lost, as a share, where the data has labels, else the share of changed answers; the mean cosine error
    of embeddings. max_size: bytes on disk. A recipe that loses too much gets a finer scheme for the fewest
    matrices, the worst first, that bring it into the budget.

    "auto" takes the fastest recipe that holds the budget (by default a loss of half a percent, where there is data)
    and is not slower than float32 for any of a few lengths and batches, timed on this machine; for another
    `target`, "cpu-avx2" or "cpu-vnni", the order is fixed and nothing is timed. Without max_loss it takes the
    recipe that usually loses least. told: what to call meanwhile; the manifest's `recipe` tells it again in `auto`.

    Returns the new bundle's path. Raises QuantizationError for what cannot be quantized and for a budget that
    nothing holds, naming the nearest; InputError for wrong arguments and data; BundleError for what cannot be read
    or written. Nothing is left behind then.
    """
    chosen = None if recipe == AUTO else find_recipe(recipe)  # before the minute that hashing may take
    if chosen is not None and target is not None:
        raise InputError(f"target={target!r} is for recipe='auto': leave out one of the two")
    if max_loss is not None and data is None:
        raise InputError("max_loss is measured on texts: pass data= as well")
    if chosen is None and max_loss is None and data is not None:
        max_loss = DEFAULT_LOSS
    budget = Budget(max_loss, max_size, target)
    if chosen is None:
        budget.recipes(decodes=False)  # a target without any is told at once
    job = Job(bundle, data, verify=True)  # damaged weights would get a sound new hash
    if job.source.path.resolve().is_relative_to(Path(out).resolve()):
        raise QuantizationError(f"{out} is or holds the bundle to be quantized: choose another name")
    with new_bundle(out, overwrite=overwrite) as folder:
        if chosen is None or budget.limited:
            choose(job, budget, chosen, folder, told or Told())
        else:
            job.write(folder, job.fit(chosen))
    return Path(out)
