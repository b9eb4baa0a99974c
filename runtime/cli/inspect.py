"""torchless inspect BUNDLE"""

from __future__ import annotations

import argparse
import json
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser(
        "inspect", help="what a bundle holds", description="Show what a bundle holds, without running it."
    )
    command.add_argument("bundle", metavar="BUNDLE")
    command.add_argument("--json", action="store_true", help="the manifest as JSON")
    command.set_defaults(act=act)


def act(args: argparse.Namespace) -> None:
    from torchless.opening import open_folder

    bundle = open_folder(args.bundle)
    manifest = bundle.manifest
    if args.json:
        print(json.dumps(json.loads(manifest.to_json()), ensure_ascii=False))
        return
    rows = [
        ("family", manifest.family),
        ("task", manifest.task),
        ("context", f"{manifest.context_length:,} tokens of a vocabulary of {manifest.vocab_size:,}"),
    ]
    if manifest.labels:
        labels = ", ".join(manifest.labels[:8]) + (", ..." if len(manifest.labels) > 8 else "")
        rows.append(("labels", labels + (f" ({manifest.problem_type})" if manifest.problem_type else "")))
    if manifest.head:
        rows.append(("head", f"{manifest.head}, in the checkpoint's words"))
    if manifest.pooling:
        rows.append(("pooling", manifest.pooling.mode + (", normalized" if manifest.pooling.normalize else "")))
    if manifest.cache:
        cache = manifest.cache
        per_token = 2 * 4 * cache.layers * cache.heads * cache.head_size
        rows.append(("cache", f"{cache.layers} layers of {cache.heads} heads of {cache.head_size}: "
                              f"{per_token / 1024:.0f} KiB a token"))  # fmt: skip
    for graph in manifest.graphs:
        rows.append(
            ("graph", f"{graph.file}: {graph.dialect}, {graph.precision}, for {', '.join(graph.providers)}")
        )
    if manifest.recipe:
        carried = manifest.recipe.get("carried")
        more = f": {len(carried)} matrices in the source's own blocks" if isinstance(carried, list) else ""
        rows.append(("recipe", str(manifest.recipe.get("name", "")) + more))
    if manifest.parity:
        error, against = manifest.parity.get("max_abs_error"), manifest.parity.get("against")
        shown = f"{error:.2g}" if isinstance(error, int | float) else str(error)
        exact = manifest.parity.get("exact_max_abs_error")  # of blocks that were carried over
        more = f", {exact:.2g} with activations in float32" if isinstance(exact, int | float) else ""
        rows.append(("checked", f"differs from {against} by at most {shown}{more}"))
    for name, entry in manifest.files.items():
        sealed = f"  sha256 {entry.sha256[:12]}..." if entry.sha256 else ""
        rows.append(("file", f"{name}  {entry.size / 1e6:.3f} MB{sealed}"))
    writer = f"torchless {manifest.torchless}" if manifest.torchless else "another tool: no manifest, no hashes"
    rows.append(("size", f"{bundle.size / 1e6:.1f} MB, written by {writer}"))
    for name, value in rows:
        print(f"{name:9}{value}")
