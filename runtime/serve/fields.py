"""A request's JSON: read strictly, and each field taken out once, with its type and range.

null stands for a field that is not given, as in OpenAI's API. Whatever is wrong is a RequestError that names the
field; so are fields that nobody has taken.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from torchless.serve.request_error import RequestError


def parse(body: bytes) -> dict[str, Any]:
    """The object that a body is. RequestError for anything else: no UTF-8, no JSON, NaN, nesting without end."""
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8: byte {error.start} cannot be read") from None
    except RecursionError:
        raise RequestError(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RequestError(400, f"the body is {kind(found)}: give a JSON object")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def kind(value: Any) -> str:
    """What a value is called in JSON."""
    if value == []:
        return "an empty array"
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


class Fields:
    """The fields of a request that are left to take."""

    def __init__(self, given: Mapping[str, Any], prefix: str = "") -> None:
        self._left = {name: value for name, value in given.items() if value is not None}
        self._prefix = prefix

    def wrong(self, name: str, meaning: str, value: Any = None) -> RequestError:
        """A RequestError of this field, with what it may be."""
        shown = f" is {json.dumps(value):.80}" if isinstance(value, int | float | str | bool) else ""
        full = self._prefix + name
        return RequestError(
            400, f"{full}{shown or f' is {kind(value)}' if value is not None else ''}: {meaning}", param=full
        )

    def take(self, name: str) -> Any:
        """The value, or None where it is not given."""
        return self._left.pop(name, None)

    def text(self, name: str, default: Any = None, *, among: Collection[str] = (), most: int | None = None) -> Any:
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, str) or (among and value not in among) or (most is not None and len(value) > most):
            short = f" of {most} characters at most" if most else ""
            raise self.wrong(
                name, f"give {' or '.join(map(json.dumps, among))}" if among else f"give a text{short}", value
            )
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "give true or false", value)
        return bool(value)

    def count(self, name: str, default: Any, least: int, most: int) -> Any:
        """A whole number of this range; 2.0 is one."""
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(name, f"give a whole number from {least:,} to {most:,}", value)
        return value

    def number(self, name: str, default: Any, least: float, most: float) -> Any:
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.wrong(name, f"give a number from {least:g} to {most:g}", value)
        return float(value)

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A text or a list of texts, none of them empty."""
        value = self.take(name)
        listed = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or len(listed) > most or not all(isinstance(x, str) and x for x in listed):
            raise self.wrong(name, f"give a text that is not empty, or a list of up to {most} of them", value)
        return tuple(listed)

    def object(self, name: str) -> Fields | None:
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "give an object", value)
        return Fields(value, f"{self._prefix}{name}.")

    def neutral(self, name: str, *values: Any, why: str) -> None:
        """A field of OpenAI's that is not implemented: refused, but for null and the values that change nothing."""
        value = self.take(name)
        if value is not None and not any(value == one and type(value) is type(one) for one in values):
            raise self.wrong(name, why)

    def end(self) -> None:
        """Refuse what nobody has taken."""
        if self._left:
            name = self._prefix + min(self._left)
            raise RequestError(400, f"unrecognized field: {name}", param=name, code="unknown_parameter")
