"""torchless quantize BUNDLE OUT"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from torchless.cli.bench import Progress
from torchless.errors import InputError

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


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
        action="append",
        help="int8 (default): a quarter of the size, nothing to notice; int4: smaller still, embedding and head in "
        "8 bits; int4-all: those in 4 bits too; int8-block, int8-static; fp16, fp16-int8, fp16-int4 for GPUs; "
        "int8-qdq, fp16-standard for TensorRT; auto: the fastest here that holds the budget; or a recipe file, "
        ".json. Given again, OUT gets a graph for each, and fp32 among them carries the float graphs along",
    )
    command.add_argument(
        "--data",
        metavar="FILE",
        help="texts like those that the model will read (JSON lines or CSV with text and label, or plain text), on "
        "which activations and losses are measured",
    )
    command.add_argument(
        "--max-loss",
        type=_share,
        metavar="SHARE",
        help="such as 0.5%% or 0.005: the rise of perplexity, the accuracy or F1 lost, without labels the share of "
        "changed answers, of embeddings the mean cosine error; with --recipe auto and --data 0.5%% by default",
    )
    command.add_argument(
        "--max-size",
        type=_size,
        metavar="SIZE",
        help="such as 20MB (kB, MB, GB, MiB); the manifest, a few kB, is not counted",
    )
    command.add_argument(
        "--target",
        metavar="NAME",
        help="cpu, cpu-avx2, cpu-vnni, cuda, tensorrt or openvino: take the recipe that suits it; with --recipe "
        "auto those that suit it are tried in a known order (default: this machine, timed)",
    )
    command.add_argument(
        "--write-recipe", metavar="FILE", help="write the recipe that was used, to be edited and run again"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the bundle OUT")
    command.set_defaults(act=act)


def act(args: argparse.Namespace) -> None:
    from torchless.bundle import read_bundle
    from torchless.quantize import quantize
    from torchless.quantize.budget import Told

    if args.write_recipe is not None:
        from torchless.quantize.report.files import check_outputs

        if args.recipe and len(args.recipe) > 1:
            raise InputError("--write-recipe writes one recipe: give --recipe once")
        check_outputs({"write-recipe": args.write_recipe}, [args.data] if args.data else [])

    with Progress() as progress:

        def line(text: str) -> None:
            progress.clear()
            print(text, file=sys.stderr, flush=True)

        out = quantize(
            args.bundle,
            args.out,
            recipe=args.recipe[0] if args.recipe and len(args.recipe) == 1 else args.recipe,
            data=args.data,
            max_loss=args.max_loss,
            max_size=args.max_size,
            target=args.target,
            overwrite=args.overwrite,
            told=Told(line, progress),
        )
    before, after = read_bundle(args.bundle), read_bundle(out)
    recipe, parity = after.manifest.recipe or {}, after.manifest.parity or {}
    if args.write_recipe is not None:
        from torchless.quantize.recipe_file import FIELDS
        from torchless.writing import write_text

        own = {name: recipe[name] for name in FIELDS if name in recipe}
        write_text(args.write_recipe, json.dumps(own, indent=2, ensure_ascii=False) + "\n")
    sizes = f"{before.size / 1e6:.1f} -> {after.size / 1e6:.1f} MB"
    graphs = after.manifest.graphs
    if len(graphs) == 1:
        print(f"{out}: {recipe.get('name')}, {sizes}; {_moved(parity)}")
        return
    print(f"{out}: {len(graphs)} graphs, {sizes}")
    for graph in graphs:
        print(
            f"{graph.file}: {graph.precision}, for {', '.join(graph.providers)}; {_moved(graph.parity or parity)}"
        )


def _moved(parity: Mapping[str, Any]) -> str:
    return (
        f"outputs differ from {parity.get('against')} by at most {parity.get('max_abs_error', 0):.2g} "
        f"(the largest output is {parity.get('largest_output', 0):.3g})"
    )


def _share(value: str) -> float:
    number = value.strip()
    try:
        return float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r}: give a share such as 0.5% or 0.005") from None


def _size(value: str) -> int:
    found = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]*)\s*", value)
    unit = UNITS.get(found[2].lower()) if found else None
    try:
        size = float(found[1]) * unit if found and unit else 0
    except ValueError:
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{value!r}: give a size such as 20MB (B, kB, MB, GB, KiB, MiB, GiB)")
    return int(size)
