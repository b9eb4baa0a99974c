"""What the labels of the data mean to a model."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.errors import InputError
from torchless.quantize.data import Example

Ids = npt.NDArray[np.int64]

Placed = tuple[str, Any]  # where a label stands, and the label
SHOWN = 5  # of the labels that a message names


def class_ids(placed: Sequence[Placed], labels: Sequence[str]) -> Ids:
    """One label each -> its index among the model's.

    A label is a name, compared exactly, else without regard to case. If not all of them are names, whole numbers
    index the model's labels. Raises InputError that names all which are neither.
    """
    exact = {name: index for index, name in enumerate(labels)}
    loose = {name.casefold(): index for index, name in reversed(list(enumerate(labels)))}
    given = [_plain(label) for _, label in placed]
    by_name = all(name.casefold() in loose for name in given)
    found = np.full(len(given), -1)
    for row, name in enumerate(given):
        if not by_name and name.isdecimal() and len(name) < 10 and int(name) < len(labels):
            found[row] = int(name)
        else:
            found[row] = exact.get(name, loose.get(name.casefold(), -1))
    if (found < 0).any():
        raise _unknown([pair for pair, index in zip(placed, found, strict=True) if index < 0], labels)
    return found


def label_sets(examples: Sequence[Example], labels: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Several labels each -> bool [N,L].

    A label is a list of names or indices, or one 0 or 1 for each of the model's labels; in a table, a JSON list
    or names with "|" between them.
    """
    found = np.zeros((len(examples), len(labels)), bool)
    flat: list[tuple[int, Placed]] = []
    for row, example in enumerate(examples):
        given = example.label
        if isinstance(given, str):
            given = [part.strip() for part in given.strip("[] ").replace(",", "|").split("|") if part.strip()]
        if not isinstance(given, list):
            given = [given]
        switches = [_plain(one).removesuffix(".0") for one in given]
        if len(given) == len(labels) and set(switches) <= {"0", "1"}:
            found[row] = [switch == "1" for switch in switches]
        else:
            flat += [(row, (example.place, one)) for one in given]
    if flat:
        found[[row for row, _ in flat], class_ids([placed for _, placed in flat], labels)] = True
    return found


def numbers(examples: Sequence[Example]) -> npt.NDArray[np.float64]:
    """What a regression foretells. Raises InputError for what is no finite number."""
    found = np.full(len(examples), np.nan)
    for row, example in enumerate(examples):
        with contextlib.suppress(TypeError, ValueError):
            found[row] = float(example.label)
        if not np.isfinite(found[row]):
            raise InputError(
                f"{example.place}: the label {example.label!r} is no number, and the model is a regression"
            )
    return found


def _plain(label: Any) -> str:
    """true is 1, 1.0 is 1; what is no label at all is shown as it is."""
    if isinstance(label, bool):
        return str(int(label))
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return label.strip() if isinstance(label, str) else str(label)


def _unknown(placed: Sequence[Placed], labels: Sequence[str]) -> InputError:
    names = list(dict.fromkeys(reprlib.repr(label) for _, label in placed))
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    others = f" and {len(placed) - 1} more" if len(placed) > 1 else ""
    numbered = f"0 to {len(labels) - 1} for " if len(labels) > 1 else ""
    return InputError(
        f"{placed[0][0]}{others}: labels that the model lacks: {shown} (it has: {numbered}{', '.join(labels)})"
    )
