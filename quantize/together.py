"""Several recipes in one bundle: a graph for the CPU beside one for a GPU, with one tokenizer and one manifest."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from torchless.bundle import Bundle
from torchless.errors import InputError, QuantizationError
from torchless.manifest import Graph
from torchless.quantize.job import Data, Job
from torchless.quantize.recipe_file import find_recipe
from torchless.quantize.recipes import Recipe
from torchless.writing import new_bundle, seal

FLOAT = "fp32"  # the bundle's own graphs, as they are


def find_one(recipe: str | os.PathLike[str] | Recipe) -> Recipe | None:
    """A recipe of a list; None for the float graphs themselves."""
    if recipe == "auto":
        raise InputError("recipe='auto' chooses one: it cannot stand in a list")
    return None if recipe == FLOAT else find_recipe(recipe)


def check_apart(source: Bundle, out: str | os.PathLike[str]) -> None:
    bundle, target = source.path.resolve(), Path(out).resolve()
    if bundle.is_relative_to(target):
        raise QuantizationError(f"{out} is or holds the bundle to be quantized: choose another name")
    if target.is_relative_to(bundle):  # which could not be replaced then, since it would hold foreign files
        raise QuantizationError(f"{out} lies in the bundle to be quantized: choose another folder")


def write_together(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipes: Sequence[Recipe | None],
    data: Data | None,
    *,
    overwrite: bool,
) -> Path:
    """A bundle with a graph for each recipe, in their order, which is that of preference; see quantize."""
    names = [FLOAT if recipe is None else recipe.name for recipe in recipes]
    if not names or len(set(names)) < len(names):
        raise InputError(f"recipe={names}: give one or more, each once")
    dialects = {recipe.dialect for recipe in recipes if recipe is not None}
    jobs = {dialect: Job(bundle, data, verify=True, dialect=dialect) for dialect in sorted(dialects)}
    any_job = next(iter(jobs.values()), None) or Job(bundle, data, verify=True)
    source = any_job.source
    check_apart(source, out)
    graphs: list[Graph] = []
    with new_bundle(out, overwrite=overwrite) as folder:
        any_job.copy_companions(folder)
        for recipe in recipes:
            if recipe is None:
                graphs += _copied(source, folder)
            else:
                job = jobs[recipe.dialect]
                graphs.append(job.add(folder, job.fit(recipe), f"model.{recipe.name}.onnx"))
        first = graphs[0]
        graphs[0] = dataclasses.replace(first, recipe=None, parity=None)
        seal(
            folder,
            dataclasses.replace(source.manifest, graphs=tuple(graphs), recipe=first.recipe, parity=first.parity),
        )
    return Path(out)


def _copied(source: Bundle, folder: Path) -> list[Graph]:
    """The float graphs with their weights; the manifest's parity is theirs."""
    for name in source.manifest.files:
        if name.endswith(".data") or any(graph.file == name for graph in source.manifest.graphs):
            shutil.copyfile(source.file(name), folder / name)
    return [dataclasses.replace(graph, parity=source.manifest.parity) for graph in source.manifest.graphs]
