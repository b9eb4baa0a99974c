"""The recipes as data: which matrices get how many bits, grouped how, and the measurement behind it.

Where a matrix stands decides what it can bear. The `ends` of a graph are the embedding of tokens and a
product whose result leaves it, such as a head (often one matrix serves both); `tables` are the other
embeddings, of positions and segments; the `body` is every other product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from torchless.errors import QuantizationError

Method = Literal["nearest", "search", "gptq", "hqq"]
Range = Literal["minmax", "percentile", "entropy"]
Floats = Literal[16, 32]
Dialect = Literal["fused", "standard"]
METHODS = ("nearest", "search", "gptq", "hqq")
RANGES = ("minmax", "percentile", "entropy")
FLOATS = (16, 32)
DIALECTS = ("fused", "standard")
GATED = "*.gate_up.weight"  # the first product of a Llama's feed-forward: half of what its layers weigh


@dataclass(frozen=True)
class Columns:
    """int8 with one scale a column; activations are 8 bits, by default with one scale a row (a token) as it passes.

    Fastest for many tokens at once: one integer product over the whole matrix. Where rows are alike, as behind a
    layer norm, one range that was measured beforehand does nearly as well, and the row need not be looked at: it is
    taken where its steps are at most `steady` times as coarse as the rows' own (0: nowhere).
    """

    steady: float = 0.0


@dataclass(frozen=True)
class Static:
    """int8 with one scale a column; activations uint8 in one range for every text, measured beforehand.

    QuantizeLinear and DequantizeLinear around a plain product: what TensorRT and OpenVINO take. The range is all
    that was seen (`minmax`), or cuts off the rarest values: beyond a percentile, or by entropy.
    """

    range: Range = "percentile"
    symmetric: bool = False  # around zero, as TensorRT wants it


@dataclass(frozen=True)
class Blocks:
    """4 or 8 bits, one scale (and by method a zero point) for `size` weights of a sum.

    Activations are int8, scaled by the same blocks.

    Closest to float32 and fastest for one token; an embedding can be read from it row by row.
    """

    bits: int
    size: int  # the largest; weights.block_size takes a smaller one where a row would need padding
    # "nearest" and "search" say how a scale is found (weights.blocks), "hqq" finds a zero point with it (hqq.py),
    # and "gptq" rounds so that the product of a text stays near (gptq.py): where no text is given, and for a head,
    # it is "hqq". What tokens are looked up in has no zero points: "search" stands in for both there.
    method: Method = "search"


@dataclass(frozen=True)
class Keep:
    """As it is, in float."""


Scheme = Columns | Static | Blocks | Keep
SCHEMES = {kind.__name__.lower(): kind for kind in (Columns, Static, Blocks, Keep)}


@dataclass(frozen=True)
class Recipe:
    """What becomes of each matrix.

    matrices: exceptions, a name (or a pattern with * and ?) and its scheme; the first that fits counts. migrate:
    how much of the unevenness of activations moves into the weights before both are rounded (see migrate.py), or
    None. floats: the bits of all that is no integer; 16 is for GPUs (see half.py), and with blocks or keep only.
    dialect: of the graph that it is made from; "standard" for engines that know onnx's own operators only, which
    blocks are not.
    """

    name: str
    body: Scheme
    ends: Blocks | Keep
    tables: Blocks | Keep
    why: str = ""
    encoder: Recipe | None = None  # what an encoder gets, where that is something else
    gated: Recipe | None = None  # what a decoder of the Llama layout gets, where that is something else
    migrate: float | None = None
    matrices: Mapping[str, Scheme] = field(default_factory=dict)
    floats: Floats = 32
    dialect: Dialect = "fused"

    def __post_init__(self) -> None:
        schemes = (self.body, *self.matrices.values())
        everywhere = (*schemes, self.ends, self.tables)
        if self.dialect == "standard" and any(isinstance(scheme, (Blocks, Columns)) for scheme in everywhere):
            raise QuantizationError(
                f"the recipe {self.name} is for the standard graph, which has no operators for blocks or columns: "
                "give static or keep"
            )
        if self.floats == 16 and any(isinstance(scheme, (Columns, Static)) for scheme in schemes):
            raise QuantizationError(
                f"the recipe {self.name} has int8 products with float16, for which no processor has kernels: "
                "give blocks or keep, or leave out floats"
            )

    def scheme(self, name: str, role: str) -> Scheme:
        """Of the matrix of this name that stands in this role."""
        for pattern, scheme in self.matrices.items():
            if fnmatchcase(name, pattern):
                return scheme
        scheme = getattr(self, role)
        assert isinstance(scheme, Scheme)
        return scheme

    @property
    def providers(self) -> tuple[str, ...]:
        """Those that have a kernel for every operator of what the recipe makes, the fastest first."""
        if self.dialect == "standard":
            whole = self.floats == 16
            return ("tensorrt", "openvino", "cuda", "directml", "cpu") if whole else ("tensorrt", "openvino", "cpu")
        return ("cuda", "directml", "cpu") if self.floats == 16 else ("cpu",)

    def record(self) -> dict[str, Any]:
        """For the manifest and for recipe files: the name, and the scheme of each part."""
        parts: dict[str, Any] = {part: describe(getattr(self, part)) for part in ("body", "ends", "tables")}
        if self.migrate is not None:
            parts["migrate"] = self.migrate
        if self.floats != 32:
            parts["floats"] = self.floats
        if self.dialect != "fused":
            parts["dialect"] = self.dialect
        if self.matrices:
            parts["matrices"] = {pattern: describe(scheme) for pattern, scheme in self.matrices.items()}
        return {"name": self.name, **parts}


def describe(scheme: Scheme) -> dict[str, Any]:
    return {"kind": type(scheme).__name__.lower(), **dataclasses.asdict(scheme)}


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "int8",
            body=Columns(steady=4.0),
            ends=Blocks(8, 128),
            tables=Blocks(8, 128),
            migrate=0.6,
            why="With VNNI a third of fp32's time from 32 rows on, where 8-bit blocks take two thirds; for one "
            "row, all that a head sees, blocks are faster (768 x 3072, 2 threads). Migration and measured "
            "ranges where rows are alike take MiniLM's error from 0.0026 to 0.0012; the ranges save a sixth of the "
            "time.",
            gated=Recipe(
                "int8",
                body=Blocks(8, 32),
                ends=Blocks(8, 128),
                tables=Blocks(8, 128),
                migrate=0.6,
                matrices={GATED: Columns()},
                why="The first token, on which attention rests, is hundreds of times louder in two channels than "
                "in the others: one scale a row makes its value 10 % wrong, for every token that looks at it. What "
                "the gate gives is as spiky. Blocks keep that to some channels. SmolLM2 loses 5 % of perplexity "
                "with columns everywhere, half a per cent with them here alone.",
            ),
        ),
        Recipe(
            "int8-block",
            body=Blocks(8, 32),
            ends=Blocks(8, 128),
            tables=Blocks(8, 128),
            why="The most faithful (MiniLM's cosine error is 0.0004), and slow where many tokens are read.",
        ),
        Recipe(
            "int8-static",
            body=Static(),
            ends=Blocks(8, 128),
            tables=Blocks(8, 128),
            migrate=0.6,
            why="For engines that take quantized activations in no other form.",
        ),
        Recipe(
            "int4",
            body=Blocks(4, 128, "gptq"),
            ends=Blocks(8, 128),
            tables=Blocks(8, 128),
            why="Two thirds of int8's size for a GPT-2; its vocabulary at 8 bits is 20 MB of that, and keeps the "
            "ranking of tokens. Blocks of 32 take a third more time. GPTQ takes a third of the divergence away "
            "where text is given.",
            encoder=Recipe(
                "int4",
                body=Blocks(4, 32, "gptq"),
                ends=Blocks(8, 128),
                tables=Blocks(8, 128),
                migrate=0.4,
                why="In an encoder blocks of 32 keep more of MiniLM's nearest than those of 128. A GPT "
                "loses by migration, an encoder gains.",
            ),
        ),
        Recipe(
            "int4-all",
            body=Blocks(4, 128, "gptq"),
            ends=Blocks(4, 32),
            tables=Blocks(8, 128),
            why="The smallest. Positions stay at 8 bits: they are a hundredth of the file.",
        ),
        Recipe(
            "fp16",
            body=Keep(),
            ends=Keep(),
            tables=Keep(),
            floats=16,
            why="What GPUs compute fastest, and without which CUDA has no kernel for attention over a cache. Half "
            "of fp32's file and cache; sotu-gpt keeps its perplexity to 0.001 %.",
        ),
        Recipe(
            "fp16-int8",
            body=Blocks(8, 32),
            ends=Blocks(8, 32),
            tables=Blocks(8, 32),
            floats=16,
            why="Blocks of 32, since some of CUDA's kernels take no others; a scale is two bytes here.",
        ),
        Recipe(
            "fp16-int4",
            body=Blocks(4, 32, "gptq"),
            ends=Blocks(8, 32),
            tables=Blocks(8, 32),
            floats=16,
            why="A GPU decodes as fast as it reads its weights. The vocabulary at 8 bits keeps the ranking of "
            "tokens.",
            encoder=Recipe(
                "fp16-int4",
                body=Blocks(4, 32, "gptq"),
                ends=Blocks(8, 32),
                tables=Blocks(8, 32),
                migrate=0.4,
                floats=16,
                why="As for int4.",
            ),
        ),
        Recipe(
            "int8-qdq",
            body=Static(symmetric=True),
            ends=Keep(),
            tables=Keep(),
            migrate=0.6,
            dialect="standard",
            why="What TensorRT takes: QuantizeLinear and DequantizeLinear around plain products, zero points 0. "
            "OpenVINO takes it, too.",
        ),
        Recipe(
            "fp16-standard",
            body=Keep(),
            ends=Keep(),
            tables=Keep(),
            floats=16,
            dialect="standard",
            why="float16 for TensorRT, which builds its engine of the types that the graph has.",
        ),
    )
}


def for_encoder(recipe: Recipe) -> Recipe:
    return recipe.encoder or recipe


def for_decoder(recipe: Recipe, matrices: Iterable[str]) -> Recipe:
    """matrices: the names of the model's."""
    if recipe.gated is None or not any(fnmatchcase(name, GATED) for name in matrices):
        return recipe
    return recipe.gated
