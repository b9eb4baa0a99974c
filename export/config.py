"""Reading config.json: every field that changes the mathematics is implemented or refused by name and value."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torchless.errors import ExportError


class Config:
    """A Hugging Face config with checks: a wrong type or an unsupported value is an ExportError.

    limit: the longest text that will be asked for, in tokens, where that is less than the model takes.
    """

    def __init__(self, raw: Mapping[str, Any], where: str = "config.json", limit: int | None = None) -> None:
        self.raw = raw
        self.limit = limit
        self._where = where

    def renamed(self, names: Mapping[str, str]) -> Config:
        """The same with fields under their first names. One that has both names is refused: which one counts?"""
        both = [
            f"{second} and {first}" for second, first in names.items() if second in self.raw and first in self.raw
        ]
        if both:
            raise ExportError(f"{self._where} has {', '.join(both)}, which are two names for one thing: remove one")
        return Config({names.get(name, name): value for name, value in self.raw.items()}, self._where, self.limit)

    def whole(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ExportError(f"{self._where}: {name} is {value!r}, expected a whole number of {least} or more")
        return value

    def context(self, name: str, default: int | None = None) -> int:
        """How many tokens are ever asked for of a model that takes as many as the field says."""
        return min(self.whole(name, default), self.limit or sys.maxsize)

    def number(self, name: str, default: float) -> float:
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ExportError(f"{self._where}: {name} is {value!r}, expected a number")
        return float(value)

    def text(self, name: str, default: str) -> str:
        value = self._take(name, default)
        if not isinstance(value, str):
            raise ExportError(f"{self._where}: {name} is {value!r}, expected text")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise ExportError(f"{self._where}: {name} is {value!r}, expected true or false")
        return value

    def refuse(self, name: str, *allowed: object) -> None:
        """Only these values of the field are implemented; a field that is absent or null is its default."""
        value = self.raw.get(name)
        if value is not None and value not in allowed:
            raise ExportError(f"{self._where}: {name}={value!r} is not supported: torchless cannot export it")

    def _take(self, name: str, default: Any) -> Any:
        value = self.raw.get(name)
        if value is None:
            value = default
        if value is None:
            raise ExportError(f"{self._where} lacks {name}: is it the config of this model?")
        return value
