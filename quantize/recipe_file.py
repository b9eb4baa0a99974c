"""A recipe as a small JSON file, to be edited and run again; it looks like the manifest's record of one."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchless.errors import QuantizationError
from torchless.quantize.recipes import (
    DIALECTS,
    FLOATS,
    METHODS,
    RANGES,
    RECIPES,
    SCHEMES,
    Blocks,
    Keep,
    Recipe,
    Scheme,
)
from torchless.quantize.weights import BLOCKS
from torchless.writing import write_text

VALUES: Mapping[str, tuple[Any, ...]] = {
    "bits": (4, 8), "size": BLOCKS, "method": METHODS, "range": RANGES, "symmetric": (False, True)
}  # fmt: skip
FIELDS = ("name", "body", "ends", "tables", "migrate", "matrices", "floats", "dialect")
KNOWN = ", ".join(RECIPES)
NAME = re.compile(r"[^\W_][\w .+-]{0,49}")  # it names files
RESERVED = ("auto", "fp32")
MOST_STEADY = 1_000_000  # takes every range already; a whole number beyond a float's would end in a traceback


def find_recipe(recipe: str | os.PathLike[str] | Recipe) -> Recipe:
    """A recipe by its name in RECIPES, or from a file. Raises QuantizationError where there is none."""
    if isinstance(recipe, Recipe):
        return recipe
    try:
        path = Path(recipe)
    except TypeError:
        raise QuantizationError(f"recipe={recipe!r}: give a name ({KNOWN}) or a recipe file") from None
    if str(recipe) in RECIPES:
        return RECIPES[str(recipe)]
    if path.suffix != ".json" and not path.is_file():
        raise QuantizationError(f"recipe={str(recipe)!r} is unknown (known: {KNOWN}, or a file of one, .json)")
    return read_recipe(path)


def write_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    write_text(path, json.dumps(recipe.record(), indent=2, ensure_ascii=False) + "\n")


def read_recipe(path: Path) -> Recipe:
    """Raises QuantizationError for what cannot be read, naming the field."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors begin files with a mark
        raw = json.loads(text, object_pairs_hook=_each_once)
    except (OSError, ValueError, RecursionError) as error:
        raise QuantizationError(f"the recipe {path} cannot be read ({error})") from None
    if not isinstance(raw, dict):
        raise QuantizationError(f"the recipe {path} holds {type(raw).__name__}, not an object")
    if unknown := sorted(set(raw) - set(FIELDS)):
        raise QuantizationError(f"{path} has unknown fields: {', '.join(unknown)} (known: {', '.join(FIELDS)})")
    parts: dict[str, Any] = {role: _scheme(raw.get(role), f"{path}: {role}") for role in FIELDS[1:4]}
    for role in ("ends", "tables"):
        if not isinstance(parts[role], Blocks | Keep):
            raise QuantizationError(f"{path}: {role}: an embedding can be blocks or keep")
    matrices = raw.get("matrices", {})
    if not isinstance(matrices, dict):
        raise QuantizationError(f"{path}: matrices: expected an object from names to schemes")
    migrate = raw.get("migrate")
    if not (migrate is None or (type(migrate) in (int, float) and 0 <= migrate <= 1)):
        raise QuantizationError(f"{path}: migrate: expected a number from 0 to 1, found {migrate!r}")
    floats = raw.get("floats", 32)
    if type(floats) is not int or floats not in FLOATS:
        raise QuantizationError(f"{path}: floats={floats!r}: give one of {', '.join(map(str, FLOATS))}")
    dialect = raw.get("dialect", DIALECTS[0])
    if dialect not in DIALECTS:
        raise QuantizationError(f"{path}: dialect={dialect!r}: give one of {', '.join(DIALECTS)}")
    name = raw.get("name", path.stem)
    if not isinstance(name, str) or not name:
        raise QuantizationError(f"{path}: name: expected text, found {name!r}")
    if not NAME.fullmatch(name) or name in RESERVED:
        raise QuantizationError(
            f"{path}: name={name!r}: give letters, digits, spaces and . _ + -, a letter or digit first, 50 of them "
            f"at most, and not {' or '.join(RESERVED)}"
        )
    return Recipe(
        name,
        **parts,
        migrate=None if migrate is None else float(migrate),
        matrices={pattern: _scheme(one, f"{path}: matrices: {pattern}") for pattern, one in matrices.items()},
        floats=16 if floats == 16 else 32,
        dialect=dialect,
    )


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a field that stands there twice was edited in the wrong place, and one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"{twice!r} stands there twice: keep one")
    return found


def _scheme(raw: object, where: str) -> Scheme:
    if not isinstance(raw, dict) or not isinstance(raw.get("kind"), str) or raw["kind"] not in SCHEMES:
        raise QuantizationError(f'{where}: expected an object with "kind": one of {", ".join(SCHEMES)}')
    kind = SCHEMES[raw["kind"]]
    given = {name: value for name, value in raw.items() if name != "kind"}
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    for name, value in given.items():
        if name not in fields:
            known = f"it has {', '.join(fields)}" if fields else "it has none"
            raise QuantizationError(f"{where}: {raw['kind']} has no field {name!r} ({known})")
        if name == "steady":
            if type(value) not in (int, float) or not 0 <= value <= MOST_STEADY:
                raise QuantizationError(f"{where}: steady={value!r}: give a number from 0 to {MOST_STEADY:,}")
        elif not any(value == allowed and type(value) is type(allowed) for allowed in VALUES[name]):
            raise QuantizationError(f"{where}: {name}={value!r}: give one of {_known(name)}")
    for name, entry in fields.items():
        if name not in given and entry.default is dataclasses.MISSING:
            raise QuantizationError(f"{where}: {raw['kind']} lacks {name}: give one of {_known(name)}")
    scheme: Scheme = kind(**given)
    return scheme


def _known(field: str) -> str:
    return ", ".join(map(str, VALUES[field]))
