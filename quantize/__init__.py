"""From a bundle in float32 to a smaller and faster one: `quantize(bundle, out)`."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchless.bundle import Bundle, Graph, read_bundle
from torchless.errors import QuantizationError
from torchless.quantize.data import read_examples
from torchless.quantize.measure import compare
from torchless.quantize.recipe_file import find_recipe
from torchless.quantize.recipes import RECIPES, Recipe, for_encoder
from torchless.text import Text
from torchless.writing import new_bundle, seal

if TYPE_CHECKING:
    from torchless.quantize.rewrite import Report

__all__ = ["RECIPES", "quantize"]


def quantize(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | Recipe = "int8",
    data: str | os.PathLike[str] | Sequence[Text] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the bundle `out`: the fused graph of `bundle` with its matrices as integers, checked against it.

    recipe: a name in RECIPES, or a file of one. data: texts like those that the model will read, or a file of
    them (torchless.quantize.data), on which activations are measured; without it random tokens are. The
    manifest's `recipe` says what became of every matrix, its `parity` how far the outputs moved on fixed tokens.

    Returns the new bundle's path. Raises QuantizationError for what cannot be quantized and BundleError for
    what cannot be read or written; nothing is left behind then.
    """
    chosen = find_recipe(recipe)  # before the minute that hashing may take
    source = read_bundle(bundle, verify=True)  # damaged weights would get a sound new hash
    if source.manifest.cache is None:
        chosen = for_encoder(chosen)
    graph = _graph_to_quantize(source)
    texts = _texts(source, data)
    if source.path.resolve().is_relative_to(Path(out).resolve()):
        raise QuantizationError(f"{out} is or holds the bundle to be quantized: choose another name")
    with new_bundle(out, overwrite=overwrite) as folder:
        _copy_companions(source, folder)
        report = _rewrite(source, graph, folder / graph.file, chosen, texts)
        rewritten = dataclasses.replace(
            graph, precision=chosen.name, providers=("cpu",), signed_int8=report.signed_int8
        )
        manifest = dataclasses.replace(
            source.manifest, graphs=(rewritten,), recipe=_record(chosen, report), parity=None
        )
        parity = compare(Bundle(folder, manifest), source, graph)
        if source.manifest.parity is not None:
            parity["source"] = {name: source.manifest.parity.get(name) for name in ("against", "max_abs_error")}
        seal(folder, dataclasses.replace(manifest, parity=parity))
    return Path(out)


def _graph_to_quantize(bundle: Bundle) -> Graph:
    graphs = bundle.manifest.graphs
    if bundle.manifest.recipe is not None:
        name = bundle.manifest.recipe.get("name", graphs[0].precision)
        raise QuantizationError(
            f"{bundle.path} is quantized already ({name}): quantize the float32 bundle that it was made from"
        )
    for graph in graphs:
        if graph.dialect == "fused" and graph.precision == "fp32":
            return graph
    have = ", ".join(f"{graph.dialect} {graph.precision}" for graph in graphs)
    raise QuantizationError(
        f"{bundle.path} has no fused graph in float32 (it has {have}): export it with --dialect fused"
    )


def _texts(bundle: Bundle, data: str | os.PathLike[str] | Sequence[Text] | None) -> Sequence[Text] | None:
    if isinstance(data, (str, os.PathLike)):
        return [example.given for example in read_examples(data, bundle.manifest.task)]
    return data


def _rewrite(bundle: Bundle, graph: Graph, target: Path, recipe: Recipe, texts: Sequence[Text] | None) -> Report:
    source = bundle.file(graph.file)
    try:
        from torchless.quantize.calibrate import Calibration, rows_of
        from torchless.quantize.draft import Draft
        from torchless.quantize.rewrite import rewrite
    except ImportError as error:
        raise QuantizationError(f"quantizing needs onnx: pip install 'torchless[quantize]' ({error})") from None
    draft = Draft(source, target)
    if texts is None:
        calibration = Calibration.random(bundle, graph)
    else:
        calibration = Calibration(bundle, graph, rows_of(bundle, texts))
    report = rewrite(draft, recipe, calibration)
    if not report.done:
        raise QuantizationError(f"{source} has no matrix that {recipe.name} could quantize")
    draft.save()
    return report


def _copy_companions(bundle: Bundle, folder: Path) -> None:
    """Tokenizer, configs and whatever else lies in the bundle, but no graph and no weights."""
    graphs = {graph.file for graph in bundle.manifest.graphs}
    for name in bundle.manifest.files:
        if name not in graphs and not name.endswith(".data"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(name), folder / name)


def _record(recipe: Recipe, report: Report) -> dict[str, Any]:
    return recipe.record() | {
        "matrices": len(report.done),
        "left_in_float": [
            {"name": left.name, "shape": list(left.shape), "reason": left.reason} for left in report.left
        ],
    }
