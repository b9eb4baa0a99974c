"""torchless adopt FOLDER OUT"""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser(
        "adopt",
        help="make a bundle of a folder that another tool exported",
        description="Write a bundle from a folder that optimum, sentence-transformers or transformers.js exported: "
        "config.json, tokenizer.json and an ONNX graph. Such folders also load as they are.",
    )
    command.add_argument("folder", metavar="FOLDER")
    command.add_argument("out", metavar="OUT")
    command.add_argument("--task", help="what the graph is for, where the folder does not say it right")
    command.add_argument("--graph-file", metavar="NAME", help="which graph of several, by its file's name")
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it is a bundle")
    command.set_defaults(act=act)


def act(args: argparse.Namespace) -> None:
    from torchless.adopting import adopt
    from torchless.bundle import read_bundle

    out = adopt(args.folder, args.out, task=args.task, file=args.graph_file, overwrite=args.overwrite)
    bundle = read_bundle(out)
    manifest, graph = bundle.manifest, bundle.manifest.graphs[0]
    size = f"{bundle.size / 1e6:.1f} MB"
    print(f"{out}: {manifest.family} for {manifest.task}, {graph.file} in {graph.precision}, {size}")
