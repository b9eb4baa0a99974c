"""torchless sensitivity BUNDLE"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torchless.cli.bench import Progress

if TYPE_CHECKING:
    from torchless.quantize.sensitivity import Sensitivity

BAR = 24  # characters of the longest
MOST_MATRICES = 12


def add(commands: Any) -> None:
    command = commands.add_parser(
        "sensitivity",
        help="which layers and matrices bear quantization badly",
        description="Quantize every layer, and every matrix, of a float32 bundle alone, and show how far the "
        "outputs move. The worst are the ones to name under `matrices` in a recipe file.",
    )
    command.add_argument("bundle", metavar="BUNDLE", help="an exported bundle, in float32")
    command.add_argument("--recipe", default="int8", help="a recipe's name, or a file of one (default: int8)")
    command.add_argument(
        "--data",
        metavar="FILE",
        help="JSON lines, CSV or plain text like what the model will read; about 2,000 tokens of it are (default: "
        "random tokens, and no loss)",
    )
    command.add_argument("--json", action="store_true", help="all of it as JSON, one object a line")
    command.set_defaults(act=act)


def act(args: argparse.Namespace) -> None:
    from torchless.quantize.sensitivity import sensitivity

    with Progress() as progress:
        found = sensitivity(args.bundle, recipe=args.recipe, data=args.data, progress=progress)
    if args.json:
        for one in found:
            print(json.dumps(dataclasses.asdict(one)))
        return
    print("\n".join(table(found)))


def table(found: Sequence[Sensitivity]) -> Iterator[str]:
    """Layers, then the worst matrices in them, each the worst first."""
    from torchless.quantize.judge import METRICS

    layers = sorted((one for one in found if one.whole), key=lambda one: -one.error)
    matrices = sorted((one for one in found if not one.whole), key=lambda one: -one.error)
    shown = matrices[:MOST_MATRICES]
    width = max(len(one.name) for one in (*layers, *shown))
    largest = max(one.error for one in (*layers, *shown)) or 1.0
    losses = layers[0].loss is not None
    yield f"error: {METRICS[layers[0].metric]}" + ("; loss: rise of cross-entropy, nats" if losses else "")
    for title, rows in (
        ("layers", layers),
        (f"matrices, {len(shown)} worst of {len(matrices)}" if len(shown) < len(matrices) else "matrices", shown),
    ):
        if rows:
            yield ""
            yield f"{title:{width}}  {'saves MB':>8}  {'error':>8}" + (f"  {'loss':>8}" if losses else "")
        for one in rows:
            loss = f"  {one.loss:>8.1g}" if one.loss is not None else ""
            bar = "#" * round(BAR * one.error / largest)
            row = f"{one.name:{width}}  {one.saved / 1e6:>8.2f}  {one.error:>8.2g}{loss}  {bar}"
            yield row.rstrip()
