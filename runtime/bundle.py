"""The bundle: a folder with a manifest, graphs, weights and a tokenizer, read with suspicion (docs/bundle.md)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from torchless.arguments import check_flag
from torchless.errors import BundleError, InputError

MANIFEST = "torchless.json"
SCHEMA = 1
LARGEST_MANIFEST = 8 << 20  # bytes; a manifest is a few kilobytes, anything near this is an attack
EXPORT_AGAIN = "copy the bundle again or export it again"

T = TypeVar("T")


@dataclass(frozen=True)
class Graph:
    """One ONNX graph of the model: a dialect and a precision, and the providers that it suits."""

    file: str
    dialect: str  # "fused" or "standard"
    precision: str  # "fp32", "int8", "int4", ...
    providers: tuple[str, ...]
    signed_int8: bool = False  # holds int8 weights that saturate on x86 without VNNI (exactness.py)


@dataclass(frozen=True)
class CacheLayout:
    """Shape of one layer's keys, or values: [rows, heads, capacity, head_size], of the graph's type."""

    layers: int
    heads: int
    head_size: int


@dataclass(frozen=True)
class Pooling:
    """How token vectors [B,S,D] became the sentence's [B,D] inside the graph."""

    mode: str  # "mean", "cls", "max" or "lasttoken"
    normalize: bool


@dataclass(frozen=True)
class FileEntry:
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """torchless.json as Python. `files` is filled in when the bundle is sealed."""

    family: str
    task: str
    context_length: int
    vocab_size: int
    graphs: tuple[Graph, ...]
    special_tokens: Mapping[str, int | list[int]] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    problem_type: str | None = None
    cache: CacheLayout | None = None
    pooling: Pooling | None = None
    token_types: bool | None = None
    segments: int | None = None
    head: str | None = None
    recipe: Mapping[str, Any] | None = None
    parity: Mapping[str, Any] | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    schema: int = SCHEMA
    torchless: str = ""

    def to_json(self) -> str:
        fields = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        first = ("schema", "torchless", "family", "task")
        ordered = {name: fields.pop(name) for name in first} | fields
        text = json.dumps(ordered, indent=2, ensure_ascii=False)
        lists_of_numbers = r"\[[\d\s.,e+-]+\]"  # one a line, or a reader scrolls through a page of them
        return re.sub(lists_of_numbers, lambda found: " ".join(found[0].split()), text) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = MANIFEST) -> Manifest:
        """Raises BundleError naming the first field that is missing or of the wrong type."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{where} is not JSON ({error}): {EXPORT_AGAIN}") from None
        read = _Fields(raw, where)
        schema = read.one("schema", _integer)
        if schema > SCHEMA:
            raise BundleError(
                f"{where} has schema {schema}, this torchless reads up to {SCHEMA}: upgrade torchless"
            )
        manifest = cls(
            schema=schema,
            torchless=read.one("torchless", _text, ""),
            family=read.one("family", _text),
            task=read.one("task", _text),
            context_length=read.one("context_length", _positive),
            vocab_size=read.one("vocab_size", _positive),
            graphs=tuple(_graph(item, where) for item in read.one("graphs", _list)),
            special_tokens=read.one("special_tokens", _special_tokens, {}),
            labels=read.one("labels", _texts, None),
            problem_type=read.one("problem_type", _text, None),
            cache=read.one("cache", lambda raw: _cache(raw, where), None),
            pooling=read.one("pooling", lambda raw: _pooling(raw, where), None),
            token_types=read.one("token_types", _boolean, None),
            segments=read.one("segments", _positive, None),
            head=read.one("head", _text, None),
            recipe=read.one("recipe", _object, None),
            parity=read.one("parity", _object, None),
            files={
                name: FileEntry(
                    _Fields(entry, f"{where}: files: {name}").one("size", _natural),
                    _Fields(entry, f"{where}: files: {name}").one("sha256", _text),
                )
                for name, entry in read.one("files", _object).items()
            },
        )
        if not manifest.graphs:
            raise BundleError(f"{where} lists no graph: {EXPORT_AGAIN}")
        return manifest


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
            f"`torchless export {folder} OUT` if it holds a checkpoint"
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


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_file(folder: Path, name: str, entry: FileEntry, *, hashed: bool) -> None:
    pure = PurePosixPath(name)
    # A drive letter or a backslash is a path only on Windows; refused everywhere, so that a bundle is portable.
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name:
        raise BundleError(f"{folder / MANIFEST}: the path {name!r} leaves the bundle: do not trust this bundle")
    path = folder / pure
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
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


class _Fields:
    """A JSON object whose fields are taken one by one, each with a check of its type."""

    def __init__(self, raw: object, where: str) -> None:
        if not isinstance(raw, dict):
            raise BundleError(f"{where} holds {type(raw).__name__}, not an object: {EXPORT_AGAIN}")
        self._raw: dict[str, Any] = raw
        self._where = where

    def one(self, name: str, check: Callable[[Any], T], default: Any = dataclasses.MISSING) -> T:
        if name not in self._raw:
            if default is dataclasses.MISSING:
                raise BundleError(f"{self._where} lacks the field {name!r}: {EXPORT_AGAIN}")
            return default  # type: ignore[no-any-return]
        try:
            return check(self._raw[name])
        except (ValueError, TypeError) as error:
            raise BundleError(f"{self._where}: field {name!r}: {error}: {EXPORT_AGAIN}") from None


def _is(kind: type[T] | tuple[type[T], ...], name: str) -> Callable[[Any], T]:
    def check(value: Any) -> T:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"expected {name}, found {type(value).__name__}")
        return value

    return check


_text = _is(str, "text")
_integer = _is(int, "a whole number")
_list: Callable[[Any], list[Any]] = _is(list, "a list")
_object: Callable[[Any], dict[str, Any]] = _is(dict, "an object")


def _natural(value: Any) -> int:
    if _integer(value) < 0:
        raise ValueError(f"{value} is negative")
    return _integer(value)


def _positive(value: Any) -> int:
    if _integer(value) < 1:
        raise ValueError(f"{value} is below 1")
    return _integer(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, found {type(value).__name__}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(item) for item in _list(value))


def _special_tokens(value: Any) -> dict[str, int | list[int]]:
    return {
        name: [_natural(one) for one in ids] if isinstance(ids, list) else _natural(ids)
        for name, ids in _object(value).items()
    }


def _graph(raw: Any, where: str) -> Graph:
    read = _Fields(raw, f"{where}: graphs")
    return Graph(
        file=read.one("file", _text),
        dialect=read.one("dialect", _text),
        precision=read.one("precision", _text),
        providers=read.one("providers", _texts),
        signed_int8=read.one("signed_int8", _boolean, False),
    )


def _cache(raw: Any, where: str) -> CacheLayout:
    read = _Fields(raw, f"{where}: cache")
    return CacheLayout(
        layers=read.one("layers", _positive),
        heads=read.one("heads", _positive),
        head_size=read.one("head_size", _positive),
    )


def _pooling(raw: Any, where: str) -> Pooling:
    read = _Fields(raw, f"{where}: pooling")
    return Pooling(mode=read.one("mode", _text), normalize=read.one("normalize", _boolean))
