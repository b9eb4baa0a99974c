"""Writing a bundle, or a file: in a temporary sibling that gets its name when it is whole, and not before."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from torchless.bundle import sha256_of
from torchless.errors import BundleError, InputError
from torchless.manifest import MANIFEST, FileEntry, Manifest
from torchless.version import __version__


@contextlib.contextmanager
def new_bundle(out: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `out`; on success it takes the name `out`, on any exception it is removed.

    An `out` that exists is refused without overwrite=True, and even then unless it is a bundle or empty. The
    old bundle stays in place until the new one is whole. Raises BundleError, also for a disk that fills.
    """
    target = Path(os.path.abspath(out))
    _refuse_to_destroy(target, overwrite)
    made = [parent for parent in target.parents if not parent.exists()]
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    done = False
    try:
        partial.mkdir(parents=True)
        yield partial
        _rename_into_place(partial, target, overwrite)
        done = True
    except OSError as error:
        reason = error.strerror or str(error)
        raise BundleError(
            f"{target} was not written ({reason}): free space or fix the permissions, then repeat; "
            "nothing was left behind"
        ) from error
    finally:
        if not done:
            shutil.rmtree(partial, ignore_errors=True)
            for parent in made:  # innermost first; one that is in use by now stays
                with contextlib.suppress(OSError):
                    parent.rmdir()


def write_file(path: str | os.PathLike[str], *content: bytes) -> None:
    """Write a file whole or not at all; an older one stays until then. Raises InputError."""
    target = Path(os.path.abspath(path))
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as stream:
            stream.writelines(content)
        partial.replace(target)
    except OSError as error:
        raise InputError(f"{target} was not written ({error.strerror or error})") from None
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """The same with text, in UTF-8 and with the line ends that it has."""
    write_file(path, text.encode("utf-8"))


def seal(folder: Path, manifest: Manifest) -> None:
    """Write torchless.json into `folder`, with size and sha256 of every file that lies there."""
    files = {
        path.relative_to(folder).as_posix(): FileEntry(path.stat().st_size, sha256_of(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    sealed = dataclasses.replace(manifest, files=files, torchless=__version__)
    (folder / MANIFEST).write_text(sealed.to_json(), encoding="utf-8", newline="\n")


def _refuse_to_destroy(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise BundleError(f"{target} exists: choose another name, or pass overwrite=True (--overwrite)")
    if not target.is_dir() or target.is_symlink():
        raise BundleError(f"{target} is not a folder, so it is not overwritten: choose another name")
    inside = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if inside and (foreign := sorted(inside - {MANIFEST} - _listed(target))):
        raise BundleError(
            f"{target} holds {foreign[0]}, which is of no bundle, so it is not overwritten: choose another name"
        )


def _listed(folder: Path) -> set[str]:
    """The files that the folder's manifest lists; none where it has no manifest that can be read."""
    try:
        return set(Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8")).files)
    except (OSError, ValueError, BundleError) as error:
        raise BundleError(
            f"{folder} holds something other than a bundle, so it is not overwritten ({error}): choose another name"
        ) from None


def _rename_into_place(partial: Path, target: Path, overwrite: bool) -> None:
    _refuse_to_destroy(target, overwrite)  # again: it may have appeared meanwhile
    if not target.exists():
        partial.rename(target)
        return
    old = partial.with_suffix(".old")
    try:
        target.rename(old)  # Windows refuses while a program has the old weights mapped
    except PermissionError as error:
        raise BundleError(f"{target} is in use: close the program that has it loaded, then repeat") from error
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
