"""Checks of what a caller gives, each an InputError that names the argument and says what it may be."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

from torchless.errors import InputError


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of `least` or more, numpy's too, as Python's; a bool is none."""
    try:
        count = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = least - 1
    if count < least:
        raise InputError(f"{name}={value!r}: give a whole number of {least} or more")
    return count


def check_flag(name: str, value: Any) -> bool:
    """True or False: what only counts as true, such as "no", is a mistake."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r}: give True or False")
    return value


def check_name(name: str, value: Any, known: Collection[str], besides: str = "") -> str:
    """One of the names that are known. besides: what else the message shall offer."""
    if not isinstance(value, str) or value not in known:
        *others, last = known
        raise InputError(f"{name}={value!r}: give {besides}{', '.join(others)} or {last}")
    return value
