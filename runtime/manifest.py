"""The manifest: torchless.json as Python, every field checked as it is read (docs/bundle.md)."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torchless.chat_form import ChatForm
from torchless.errors import BundleError

MANIFEST = "torchless.json"
SCHEMA = 1
EXPORT_AGAIN = "copy the bundle again or export it again"

T = TypeVar("T")


@dataclass(frozen=True)
class Graph:
    """One ONNX graph of the model: a dialect and a precision, and the providers that it suits."""

    file: str
    dialect: str  # "fused", "standard", or "foreign": as another tool wrote it
    precision: str  # "fp32", "int8", "int4", ...
    providers: tuple[str, ...]
    signed_int8: bool = False  # holds int8 weights that saturate on x86 without VNNI (exactness.py)
    # Of a further graph, what the manifest's own fields of these names say of the first.
    recipe: Mapping[str, Any] | None = None
    parity: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class CacheLayout:
    """Shape of one layer's keys, or values: [rows, heads, capacity, head_size], of the graph's type.

    shared: past and present are one buffer that the graph writes in place; else the graph takes the past at its own
    length and gives it back with the new tokens behind it, as optimum and transformers.js export decoders.
    """

    layers: int
    heads: int
    head_size: int
    shared: bool = True


@dataclass(frozen=True)
class Pooling:
    """How token vectors [B,S,D] become the sentence's [B,D]: inside the graph, or after it."""

    mode: str  # "mean", "cls", "max" or "lasttoken"
    normalize: bool
    inside: bool = True


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
    chat: ChatForm | None = None
    recipe: Mapping[str, Any] | None = None
    parity: Mapping[str, Any] | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    schema: int = SCHEMA
    torchless: str = ""

    def to_json(self) -> str:
        fields = _without_defaults(dataclasses.asdict(self))
        first = ("schema", "torchless", "family", "task")
        ordered = {name: fields.pop(name) for name in first} | fields
        text = json.dumps(ordered, indent=2, ensure_ascii=False)
        # One a line, or a reader scrolls through a page of them; no text has a line's end as it is.
        lists_of_numbers = r"\[\n[\d\s.,e+-]+\]"
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
            chat=read.one("chat", lambda raw: _chat(raw, where), None),
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


def _without_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """What is None is left out, and what says that a graph is made as torchless makes them."""
    kept = {name: value for name, value in fields.items() if value is not None}
    kept["graphs"] = [{name: one for name, one in graph.items() if one is not None} for graph in kept["graphs"]]
    for name, usual in (("cache", "shared"), ("pooling", "inside")):
        if kept.get(name, {}).get(usual) is True:
            del kept[name][usual]
    return kept


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
        recipe=read.one("recipe", _object, None),
        parity=read.one("parity", _object, None),
    )


def _cache(raw: Any, where: str) -> CacheLayout:
    read = _Fields(raw, f"{where}: cache")
    return CacheLayout(
        layers=read.one("layers", _positive),
        heads=read.one("heads", _positive),
        head_size=read.one("head_size", _positive),
        shared=read.one("shared", _boolean, True),
    )


def _pooling(raw: Any, where: str) -> Pooling:
    read = _Fields(raw, f"{where}: pooling")
    return Pooling(
        mode=read.one("mode", _text),
        normalize=read.one("normalize", _boolean),
        inside=read.one("inside", _boolean, True),
    )


def _chat(raw: Any, where: str) -> ChatForm:
    read = _Fields(raw, f"{where}: chat")
    return ChatForm(
        turns=read.one("turns", lambda given: {role: _turn(texts) for role, texts in _object(given).items()}),
        opening=read.one("opening", lambda given: {role: _text(text) for role, text in _object(given).items()}, {}),
        answer=read.one("answer", _text, ""),
        trim=read.one("trim", _boolean, False),
    )


def _turn(value: Any) -> tuple[str, str]:
    texts = _texts(value)
    if len(texts) != 2:
        raise ValueError(f"{len(texts)} texts around what is said, expected 2")
    return texts[0], texts[1]
