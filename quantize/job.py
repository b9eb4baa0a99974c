"""One float32 bundle that is quantized, in one way or, to compare them, in several."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchless.bundle import Bundle, read_bundle
from torchless.errors import InputError, QuantizationError
from torchless.manifest import FileEntry, Graph
from torchless.quantize.data import Example, read_examples, sample
from torchless.quantize.measure import compare
from torchless.quantize.recipes import Dialect, Recipe, for_decoder, for_encoder
from torchless.text import Text, check_pair, check_text
from torchless.writing import seal

if TYPE_CHECKING:
    from torchless.quantize.calibrate import Calibration, Row
    from torchless.quantize.draft import Draft
    from torchless.quantize.matrices import Matrix
    from torchless.quantize.remembered import Known
    from torchless.quantize.rewrite import Report

Data = str | os.PathLike[str] | Sequence[Text]

FEW_ROWS = 16  # for a draft that is only looked at
ENOUGH, ENOUGH_TOKENS = 100, 1_000  # texts or tokens; below both, one odd text can set a range


class Job:
    """The bundle, its float32 graph of a dialect, and the texts to calibrate and judge on (None: random tokens).

    What was measured inside the graph for one recipe is remembered for the next. Raises QuantizationError for a
    bundle that is quantized already or has no such graph, InputError for data that cannot be read and for labels
    that the model lacks.
    """

    def __init__(
        self, bundle: str | os.PathLike[str], data: Data | None, *, verify: bool, dialect: Dialect = "fused"
    ) -> None:
        self.source = read_bundle(bundle, verify=verify)
        self.graph = _graph_to_quantize(self.source, dialect)
        self.examples = None if data is None else _examples(self.source, data)
        if self.examples is not None:
            from torchless.quantize.loss import right_labels

            right_labels(self.source.manifest, self.examples)  # texts of another task calibrate nothing
        self._rows: Sequence[Row] | None = None
        self._known: dict[int, Known] = {}  # by the number of rows

    @property
    def decodes(self) -> bool:
        return self.source.manifest.cache is not None

    def fit(self, recipe: Recipe) -> Recipe:
        """The recipe as it is for this family."""
        if not self.decodes:
            return for_encoder(recipe)
        return for_decoder(recipe, (matrix.name for matrix in self.matrices()))

    def thin(self) -> str:
        """A sentence on texts that say too little, "" where they say enough or were not asked."""
        tokens = sum(len(row.input_ids) for row in self._rows or ())
        if self.examples is None or self._rows is None or tokens >= ENOUGH_TOKENS or len(self.examples) >= ENOUGH:
            return ""
        return f"activations were measured on {tokens:,} tokens of the data: a few hundred texts tell more"

    def write(self, folder: Path, recipe: Recipe) -> Bundle:
        """Fill an empty folder with the quantized bundle, checked against the source."""
        self.copy_companions(folder)
        graph = self.add(folder, recipe, self.graph.file)
        source = self.source.manifest
        first = dataclasses.replace(graph, recipe=None, parity=None)
        seal(folder, dataclasses.replace(source, graphs=(first,), recipe=graph.recipe, parity=graph.parity))
        return read_bundle(folder)

    def add(self, folder: Path, recipe: Recipe, file: str) -> Graph:
        """Write one graph into a folder, checked against the source: with its own recipe and parity."""
        draft, report = self.rewritten(recipe, folder / file, rows=None)
        if not report.done and recipe.floats == 32:
            raise QuantizationError(
                f"{self.source.file(self.graph.file)} has no matrix that {recipe.name} could quantize"
            )
        draft.save()
        graph = dataclasses.replace(
            self.graph, file=file, precision=recipe.name, providers=recipe.providers, signed_int8=report.signed_int8
        )
        source = self.source.manifest
        made = _record(recipe, report)
        files = dict.fromkeys((*source.files, file, f"{file}.data"), FileEntry(0, ""))  # not sealed yet
        manifest = dataclasses.replace(source, graphs=(graph,), recipe=made, parity=None, files=files)
        parity = compare(Bundle(folder, manifest), self.source, self.graph)
        if source.parity is not None:
            parity["source"] = {name: source.parity.get(name) for name in ("against", "max_abs_error")}
        return dataclasses.replace(graph, recipe=made, parity=parity)

    def rewritten(
        self, recipe: Recipe, target: Path | None = None, rows: int | None = FEW_ROWS
    ) -> tuple[Any, Report]:
        """A Draft of the graph after the recipe, and what became of every matrix.

        target: see Draft. rows: that it is calibrated on at most; None for all.
        """
        draft = self._draft(target)
        from torchless.quantize.rewrite import rewrite

        return draft, rewrite(draft, recipe, self._calibrate(rows))

    def matrices(self) -> list[Matrix]:
        """Those of the graph that can be quantized."""
        draft = self._draft(None)
        from torchless.quantize.matrices import find_matrices

        return find_matrices(draft)[0]

    def _draft(self, target: Path | None) -> Draft:
        try:
            from torchless.quantize.draft import Draft
        except ImportError as error:
            raise QuantizationError(f"quantizing needs onnx: pip install 'torchless[quantize]' ({error})") from None
        return Draft(self.source.file(self.graph.file), target)

    def _calibrate(self, limit: int | None) -> Calibration:
        """A new one for every draft, since each divides in its own way; rows and magnitudes are shared."""
        from torchless.quantize.calibrate import Calibration, rows_of
        from torchless.quantize.remembered import Known, Remembered

        if self._rows is None and self.examples is None:
            self._rows = Calibration.random(self.source, self.graph).rows
        elif self._rows is None and self.examples is not None:
            self._rows = rows_of(self.source, [example.given for example in self.examples])
        assert self._rows is not None
        rows = sample(self._rows, limit)
        known = self._known.setdefault(len(rows), Known())
        return Remembered(self.source, self.graph, rows, known, text=self.examples is not None)

    def copy_companions(self, folder: Path) -> None:
        """Tokenizer, configs and whatever else lies in the bundle, but no graph and no weights."""
        graphs = {graph.file for graph in self.source.manifest.graphs}
        for name in self.source.manifest.files:
            if name not in graphs and not name.endswith(".data"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.source.file(name), folder / name)


def _graph_to_quantize(bundle: Bundle, dialect: Dialect) -> Graph:
    graphs = bundle.manifest.graphs
    for graph in graphs:
        if graph.dialect == dialect and graph.precision == "fp32":
            return graph
    if bundle.manifest.recipe is not None:
        name = bundle.manifest.recipe.get("name", graphs[0].precision)
        advice = "quantize the float32 bundle that it was made from"
        if "carried" in bundle.manifest.recipe:  # there was none
            advice = "export the GGUF file with --precision fp32, and quantize that"
        raise QuantizationError(f"{bundle.path} is quantized already ({name}): {advice}")
    if all(graph.dialect == "foreign" for graph in graphs):
        raise QuantizationError(
            f"{bundle.path} has no {dialect} graph in float32: another tool wrote its graph, and recipes fit "
            "those of torchless. Export the checkpoint that it was made from"
        )
    have = ", ".join(f"{graph.dialect} {graph.precision}" for graph in graphs)
    raise QuantizationError(
        f"{bundle.path} has no {dialect} graph in float32 (it has {have}): export the checkpoint with "
        f"--dialect {'all' if dialect == 'standard' else 'fused'}"
    )


def _examples(bundle: Bundle, data: Data) -> list[Example]:
    if isinstance(data, (str, os.PathLike)):
        return read_examples(data, bundle.manifest.task)
    if not isinstance(data, Sequence) or not data:
        raise InputError("data: give a file of texts, or a list of them, one or more")
    given = [check_pair(text) if isinstance(text, tuple) else (check_text(text), None) for text in data]
    return [Example(f"text {number}", *pair) for number, pair in enumerate(given, 1)]


def _record(recipe: Recipe, report: Report) -> dict[str, Any]:
    """recipe.record(), how many matrices were quantized, and which were not and why."""
    return recipe.record() | {
        "quantized": len(report.done),
        "left_in_float": [
            {"name": left.name, "shape": list(left.shape), "reason": left.reason} for left in report.left
        ],
    }
