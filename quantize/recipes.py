"""The recipes as data: which matrices get how many bits, grouped how, and the measurement behind it.

Where a matrix stands decides what it can bear. The `ends` of a graph are the embedding of tokens and a
product whose result leaves it, such as a head (often one matrix serves both); `tables` are the other
embeddings, of positions and segments; the `body` is every other product.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from torchless.errors import QuantizationError


@dataclass(frozen=True)
class Columns:
    """int8 with one scale a column; activations are int8 with one scale a row (a token).

    Fastest for many tokens at once: one integer product over the whole matrix.
    """

    bits: int = 8


@dataclass(frozen=True)
class Blocks:
    """4 or 8 bits, one scale for `size` weights of a sum; activations are int8, scaled by the same blocks.

    Closest to float32 and fastest for one token; an embedding can be read from it row by row.
    """

    bits: int
    size: int  # the largest; weights.block_size takes a smaller one where a row would need padding


Scheme = Columns | Blocks


@dataclass(frozen=True)
class Recipe:
    name: str
    body: Scheme
    ends: Blocks
    tables: Blocks
    why: str
    encoder: Scheme | None = None  # the body of an encoder, where it is another one

    def record(self) -> dict[str, Any]:
        """For the manifest: the name, and the scheme of each part."""
        parts = {"body": self.body, "ends": self.ends, "tables": self.tables}
        return {
            "name": self.name,
            **{part: {"kind": type(scheme).__name__.lower(), **asdict(scheme)} for part, scheme in parts.items()},
        }


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "int8",
            body=Columns(),
            ends=Blocks(8, 128),
            tables=Blocks(8, 128),
            why="With VNNI a third of fp32's time from 32 rows on, where 8-bit blocks take two thirds; for "
            "one row, which is all that a head sees, blocks are faster (768 x 3072, 2 threads).",
        ),
        Recipe(
            "int4",
            body=Blocks(4, 128),
            ends=Blocks(8, 128),
            tables=Blocks(8, 128),
            why="Two thirds of int8's size for a GPT-2; its vocabulary at 8 bits is 20 MB of that, and keeps the "
            "ranking of tokens. Blocks of 32 take a third more time, and with plain scales have the perplexity of "
            "blocks of 128 with searched ones. In an encoder they keep more: 84 % of MiniLM's ten nearest, not 80.",
            encoder=Blocks(4, 32),
        ),
        Recipe(
            "int4-all",
            body=Blocks(4, 128),
            ends=Blocks(4, 32),
            tables=Blocks(8, 128),
            why="The smallest. Positions stay at 8 bits: they are a hundredth of the file.",
        ),
    )
}


def find_recipe(name: str, *, decodes: bool = True) -> Recipe:
    """The recipe as it is for a decoder, or else for an encoder. Raises QuantizationError for an unknown name."""
    if name not in RECIPES:
        raise QuantizationError(f"recipe={name!r} is unknown (known: {', '.join(RECIPES)})")
    recipe = RECIPES[name]
    return recipe if decodes or recipe.encoder is None else replace(recipe, body=recipe.encoder)
