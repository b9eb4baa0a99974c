"""From a bundle in float32 to a smaller and faster one: `quantize(bundle, out)`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torchless.errors import InputError
from torchless.quantize.auto import choose
from torchless.quantize.budget import DEFAULT_LOSS, Budget, Told, recipe_for
from torchless.quantize.job import Data, Job
from torchless.quantize.recipe_file import find_recipe
from torchless.quantize.recipes import RECIPES, Recipe
from torchless.quantize.together import check_apart, find_one, write_together
from torchless.writing import new_bundle

__all__ = ["RECIPES", "quantize"]

AUTO = "auto"


Named = str | os.PathLike[str] | Recipe


def quantize(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: Named | Sequence[Named] | None = None,
    data: Data | None = None,
    max_loss: float | None = None,
    max_size: int | None = None,
    target: str | None = None,
    overwrite: bool = False,
    told: Told | None = None,
) -> Path:
    """Write the bundle `out`: a graph of `bundle` with its matrices as integers, checked against it.

    recipe: a name in RECIPES, a file of one, or "auto"; by default what suits the `target`, which is this machine's
    CPU. A list of recipes gives a bundle with a graph for each, of which `load` takes the first for its provider;
    "fp32" among them carries the float graphs along. data: texts like those that the model will read, or a file
    of them (torchless.quantize.data), on which activations and losses are measured; without it activations are
    measured on random tokens. The manifest's `recipe` says what became of every matrix, its `parity` how far the
    outputs moved on fixed tokens.

    max_loss (needs data): the relative rise of perplexity of a generator or a masked language model; the accuracy
    or F1 lost, as a share, where the data has labels, else the share of changed answers; the mean cosine error
    of embeddings. max_size: bytes on disk, the manifest's few thousand aside. A recipe that loses too much gets a
    finer scheme for the fewest matrices, the worst first, that bring it into the budget.

    "auto" takes the fastest recipe that holds the budget (by default a loss of half a percent, where there is data)
    and is not slower than float32 for any of a few lengths and batches, timed on this machine; for another
    `target` (TARGETS in budget.py) the order is fixed and nothing is timed. Without max_loss it takes the
    recipe that usually loses least. told: what to call meanwhile; the manifest's `recipe` tells it again in `auto`.

    Returns the new bundle's path. Raises QuantizationError for what cannot be quantized and for a budget that
    nothing holds, naming the nearest; InputError for wrong arguments and data; BundleError for what cannot be read
    or written. Nothing is left behind then.
    """
    if isinstance(recipe, Sequence) and not isinstance(recipe, str):
        if target is not None or max_loss is not None or max_size is not None:
            raise InputError("a list of recipes has no target and no budget: give one recipe, or leave those out")
        return write_together(bundle, out, [find_one(one) for one in recipe], data, overwrite=overwrite)
    if recipe is None:
        recipe, target = recipe_for(target, calibrated=data is not None), None
    chosen = None if recipe == AUTO else find_recipe(recipe)  # before the minute that hashing may take
    if chosen is not None and target is not None:
        raise InputError(f"target={target!r} chooses a recipe itself: leave out recipe, or give recipe='auto'")
    if max_loss is not None and data is None:
        raise InputError("max_loss is measured on texts: pass data= as well")
    if chosen is None and max_loss is None and data is not None:
        max_loss = DEFAULT_LOSS
    budget = Budget(max_loss, max_size, target)
    dialect = (chosen or budget.recipes(decodes=False)[0]).dialect
    job = Job(bundle, data, verify=True, dialect=dialect)  # damaged weights would get a sound new hash
    check_apart(job.source, out)
    with new_bundle(out, overwrite=overwrite) as folder:
        if chosen is None or budget.limited:
            choose(job, budget, chosen, folder, told or Told())
        else:
            job.write(folder, job.fit(chosen))
            if told is not None and (thin := job.thin()):  # a budget tells the intervals that follow from it
                told.line(thin)
    return Path(out)
