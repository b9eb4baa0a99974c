"""Writing the results: JSON, CSV and HTML, each whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchless.errors import InputError
from torchless.manifest import MANIFEST
from torchless.quantize.report.html import page
from torchless.quantize.report.plots import check_matplotlib
from torchless.quantize.results import COLUMNS, Results
from torchless.writing import write_text

FORMATS = ("json", "csv", "html")


def check_outputs(outputs: Mapping[str, str | os.PathLike[str]], inputs: Sequence[str | os.PathLike[str]]) -> None:
    """InputError for files that cannot be written or should not be, before anything is measured.

    outputs: by the option that names each, such as one of FORMATS. inputs: files that must stay as they are. An
    older result is replaced; a file in a bundle's folder would make the bundle look damaged. QuantizationError for
    HTML without matplotlib.
    """
    taken = {Path(os.path.abspath(path)): "is read" for path in inputs}
    for form, path in outputs.items():
        target = Path(os.path.abspath(path))
        if target in taken:
            raise InputError(f"--{form} {path}: {taken[target]} as well: choose another name")
        if target.is_dir():
            raise InputError(f"--{form} {path} is a folder: give a file")
        if not target.parent.is_dir():
            raise InputError(f"--{form} {path}: there is no folder {target.parent}: make it first")
        if not os.access(target.parent, os.W_OK):
            raise InputError(f"--{form} {path}: {target.parent} cannot be written to: choose another folder")
        if (target.parent / MANIFEST).exists():
            raise InputError(f"--{form} {path} is in the folder of a bundle: choose another folder")
        taken[target] = "is written"
    if "html" in outputs:
        check_matplotlib()


def write(results: Results, outputs: Mapping[str, str | os.PathLike[str]]) -> None:
    """Write the results in each of the formats. Raises InputError for a file that cannot be written."""
    makers = {"json": Results.to_json, "csv": as_csv, "html": page}
    for form, path in outputs.items():
        write_text(path, makers[form](results))


def as_csv(results: Results) -> str:
    """One row a bundle and measure, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(results.rows())
    return text.getvalue()
