"""The bundle: a folder with a manifest, graphs, weights and a tokenizer, read with suspicion (docs/bundle.md)."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torchless.arguments import check_flag
from torchless.errors import BundleError, InputError
from torchless.manifest import EXPORT_AGAIN, MANIFEST, FileEntry, Manifest

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LARGEST_MANIFEST = 8 << 20  # bytes; a manifest is a few kilobytes, anything near this is an attack


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every file is there with its size, and all but the weights with its hash."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        return self.path / name

    def has(self, name: str) -> bool:
        return name in self.manifest.files

    @property
    def size(self) -> int:
        """Bytes on disk, the manifest's own left out."""
        return sum(entry.size for entry in self.manifest.files.values())


def read_bundle(path: str | os.PathLike[str], *, verify: bool = False) -> Bundle:
    """Open the bundle at `path` and check it; with verify=True hash the weights too.

    Raises BundleError for a missing folder or file, a size or sha256 that differs, a path that leaves the
    folder, a manifest that cannot be read or has a newer schema; InputError for what is no path.
    """
    check_flag("verify", verify)
    try:
        folder = Path(os.path.abspath(path))  # files are opened later, too, from wherever the program is by then
    except TypeError:
        raise InputError(f"expected the folder of a bundle, got {type(path).__name__}") from None
    if not folder.is_dir():
        raise BundleError(
            f"{folder} is not a folder: give the folder that `torchless export` wrote"
            + (" (unzip the archive first)" if folder.is_file() else "")
            + (
                "; torchless.load and `torchless run` ask the hub for it with download=True (--download)"
                if looks_like_a_name(path)
                else ""
            )
        )
    where = folder / MANIFEST
    try:
        size = where.stat().st_size
        if size > LARGEST_MANIFEST:
            raise BundleError(f"{where} has {size:,} bytes, far too many for a manifest: {EXPORT_AGAIN}")
        text = where.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BundleError(
            f"{folder} has no {MANIFEST}, so it is no bundle: make one with "
            f"`torchless export {folder} OUT` if it holds a checkpoint, with `torchless adopt {folder} OUT` if it "
            "holds another tool's model.onnx"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{where} cannot be read ({error}): {EXPORT_AGAIN}") from None
    bundle = Bundle(folder, Manifest.from_json(text, str(where)))
    for name, entry in bundle.manifest.files.items():
        _check_file(folder, name, entry, hashed=verify or not name.endswith(".data"))
    for graph in bundle.manifest.graphs:
        if graph.file not in bundle.manifest.files:
            raise BundleError(f"{where}: graph {graph.file} is not listed under files: {EXPORT_AGAIN}")
    return bundle


def looks_like_a_name(path: object) -> bool:
    """Whether this could be a model of the hub, "org/name", rather than a folder's path."""
    return isinstance(path, str) and HUB_NAME.fullmatch(path) is not None


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def lies_within(path: Path, folder: Path) -> bool:
    """Whether a file is the folder's own; those of a snapshot in the hub's cache are links to its blobs."""
    real, homes = path.resolve(), [folder.resolve()]
    if folder.parent.name == "snapshots":
        homes.append((folder.parent.parent / "blobs").resolve())
    return any(real.is_relative_to(home) for home in homes)


def _check_file(folder: Path, name: str, entry: FileEntry, *, hashed: bool) -> None:
    pure = PurePosixPath(name)
    # A drive letter or a backslash is a path only on Windows; refused everywhere, so that a bundle is portable.
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name:
        raise BundleError(f"{folder / MANIFEST}: the path {name!r} leaves the bundle: do not trust this bundle")
    path = folder / pure
    try:
        inside = lies_within(path, folder)
        size = path.stat().st_size
    except (OSError, RuntimeError, ValueError):  # a loop of links; a name that no file can have
        raise BundleError(f"{path} is missing: {EXPORT_AGAIN}") from None
    if not inside:
        raise BundleError(f"{path} is a link that leaves the bundle: do not trust this bundle")
    if not path.is_file():
        raise BundleError(f"{path} is not a file: {EXPORT_AGAIN}")
    if size != entry.size:
        raise BundleError(f"{path} has {size:,} bytes, its manifest says {entry.size:,}: {EXPORT_AGAIN}")
    if hashed:
        try:
            found = sha256_of(path)
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error}): {EXPORT_AGAIN}") from None
        if found != entry.sha256:
            raise BundleError(f"{path} differs from its manifest (sha256 {found[:12]}…): {EXPORT_AGAIN}")
