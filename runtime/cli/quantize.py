"""torchless quantize BUNDLE OUT"""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser(
        "quantize",
        help="write a smaller bundle",
        description="Write the bundle OUT: BUNDLE with its matrices and embeddings in 8 or 4 bits.",
    )
    command.add_argument("bundle", metavar="BUNDLE", help="an exported bundle")
    command.add_argument("out", metavar="OUT", help="folder to write; it must not exist")
    command.add_argument(
        "--recipe",
        default="int8",
        help="int8 (default): a quarter of the size, nothing to notice; int4: smaller still, embedding and head in "
        "8 bits; int4-all: those in 4 bits too",
    )
    command.add_argument("--overwrite", action="store_true", help="replace the bundle OUT")
    command.set_defaults(act=act)


def act(args: argparse.Namespace) -> None:
    from torchless.bundle import read_bundle
    from torchless.quantize import quantize

    out = quantize(args.bundle, args.out, recipe=args.recipe, overwrite=args.overwrite)
    before, after = read_bundle(args.bundle), read_bundle(out)
    parity = after.manifest.parity or {}
    print(
        f"{out}: {args.recipe}, {before.size / 1e6:.1f} -> {after.size / 1e6:.1f} MB; outputs differ from "
        f"{parity.get('against')} by at most {parity.get('max_abs_error', 0):.2g} "
        f"(the largest output is {parity.get('largest_output', 0):.3g})"
    )
