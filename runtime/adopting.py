"""From another tool's folder to a bundle: a manifest, hashes, and a record of what the graph computes."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from torchless.bundle import Bundle
from torchless.errors import BundleError, InputError
from torchless.manifest import MANIFEST, Manifest
from torchless.opening import open_folder
from torchless.probe import Probe, record, run_probe
from torchless.writing import new_bundle, seal


def adopt(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    task: str | None = None,
    file: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the bundle `out` with one graph of a folder that another tool has exported (foreign.py).

    task: what the graph is for, where the folder does not say it right. file: which graph, by its name, where there
    are several. The graph is copied as it is: a decoder still concatenates its past, and is slower than one that
    `torchless export` writes.

    Returns the bundle's path. Raises BundleError for a folder that cannot be read or is a bundle already, and for
    what cannot be written; InputError for a task or file that is wrong.
    """
    source = open_folder(folder, task=task, file=file)
    if (source.path / MANIFEST).exists():
        raise BundleError(f"{source.path} is a bundle already: load it as it is")
    if not isinstance(out, str | os.PathLike):
        raise InputError(f"out is a {type(out).__name__}: give the path of the folder to write")
    with new_bundle(out, overwrite=overwrite) as new:
        manifest = copy_into(source, new)
        probe = Probe.make(manifest, manifest.segments or 1)
        found = run_probe(Bundle(new, manifest), manifest.graphs[0], probe)
        seal(new, dataclasses.replace(manifest, parity=record("itself, when it was adopted", probe, found, 0.0)))
    return Path(out)


def copy_into(source: Bundle, new: Path) -> Manifest:
    """Copy another tool's folder, of its graphs the first; the manifest, which is not yet sealed."""
    graph, *others = source.manifest.graphs
    left = {other.file for other in others}
    for name in source.manifest.files:
        if name not in left:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.file(name), new / name)
    lossy = {"name": graph.precision} if graph.precision not in ("fp32", "fp16") else None
    return dataclasses.replace(source.manifest, graphs=(graph,), recipe=lossy)
