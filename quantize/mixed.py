"""Mixed precision: the few matrices that bear a recipe worst are kept in a finer scheme.

A ladder has one rung a matrix, the worst first: it climbs to the next finer scheme. When all have climbed once,
those that can go on to float do, in the same order. The first `count` rungs of it make a recipe of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from torchless.quantize.recipes import Blocks, Columns, Keep, Recipe, Scheme
from torchless.quantize.sensitivity import Part

Rung = tuple[str, Scheme]  # a matrix, and the finer scheme that it gets


def finer(scheme: Scheme, role: str, *, decodes: bool) -> Scheme | None:
    """The next: 4-bit blocks, then 8 bits as suits the model, then float; None after that."""
    if isinstance(scheme, Blocks) and scheme.bits == 4:
        return Blocks(8, 128) if decodes or role != "body" else Columns()
    return None if isinstance(scheme, Keep) else Keep()


def ladder(parts: Sequence[Part], errors: Sequence[float], *, decodes: bool) -> list[Rung]:
    """All rungs. errors: of each part, quantized alone."""
    ranked = [part for _, part in sorted(zip(errors, parts), key=lambda pair: -pair[0])]
    rungs: list[Rung] = []
    now = {part.name: part.scheme for part in ranked}
    while climbing := list(_climb(ranked, now, decodes)):
        rungs += climbing
        now |= dict(climbing)
    return rungs


def _climb(parts: Sequence[Part], now: dict[str, Scheme], decodes: bool) -> Iterator[Rung]:
    for part in parts:
        higher = finer(now[part.name], part.role, decodes=decodes)
        if higher is not None:
            yield part.name, higher


def mixture(recipe: Recipe, rungs: Sequence[Rung]) -> Recipe:
    """The recipe with these matrices where the rungs lead; exceptions that it has hold for all others."""
    climbed = dict(rungs)
    others = {name: scheme for name, scheme in recipe.matrices.items() if name not in climbed}
    return dataclasses.replace(recipe, name=f"{recipe.name}-mixed", matrices=climbed | others)


def smallest(most: int, holds: Callable[[int], bool]) -> int | None:
    """The least count from 1 to `most` that holds, if one does all larger ones do; None where none holds.

    Asked for 1, 2, 4 and so on, then between the last two, so at most about 2 log2(most) times.
    """
    count, failed = 1, 0
    while not holds(count):
        if count == most:
            return None
        failed, count = count, min(2 * count, most)
    while count - failed > 1:
        middle = (count + failed) // 2
        if holds(middle):
            count = middle
        else:
            failed = middle
    return count
