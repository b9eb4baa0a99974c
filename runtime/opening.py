"""A folder that is to be loaded: a bundle of ours, or what another tool has exported."""

from __future__ import annotations

import os
from pathlib import Path

from torchless.bundle import Bundle, read_bundle
from torchless.manifest import MANIFEST


def open_folder(
    path: str | os.PathLike[str], *, task: str | None = None, file: str | None = None, verify: bool = False
) -> Bundle:
    """The bundle at `path`; of another tool's folder, one whose manifest is made in memory (see foreign.py).

    task, file: for such a folder, what its graph is for and which of several is meant. Raises BundleError for a
    folder that is neither or is damaged, InputError for what is no path.
    """
    if isinstance(path, str | os.PathLike):
        folder = Path(os.path.abspath(path))
        if folder.is_dir() and not (folder / MANIFEST).exists():
            from torchless.foreign import graphs_in, read_foreign

            if graphs_in(folder):
                return read_foreign(folder, task=task, file=file)
    return read_bundle(path, verify=verify)
