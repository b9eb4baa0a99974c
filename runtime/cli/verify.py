"""torchless verify BUNDLE [--against CHECKPOINT]"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from torchless.errors import BundleError, InputError


def add(commands: Any) -> None:
    command = commands.add_parser(
        "verify",
        help="is a bundle whole, and does it compute the same here",
        description="Hash every file and repeat the bundle's own check: each graph is run on the inputs recorded "
        "in the manifest and must give the recorded outputs. With --against it is compared with the checkpoint "
        "in torch.",
    )
    command.add_argument("bundle", metavar="BUNDLE")
    command.add_argument("--against", metavar="CHECKPOINT", help="the checkpoint it was made from (needs torch)")
    command.add_argument("--json", action="store_true", help="the result as JSON")
    command.set_defaults(act=act)


def act(args: argparse.Namespace) -> None:
    from torchless.bundle import read_bundle
    from torchless.verify import tolerance, verify

    if args.against is not None and not Path(args.against).exists():
        raise InputError(f"--against {args.against}: there is no such folder or file")
    result = verify(args.bundle)
    report: dict[str, Any] = {
        "bundle": args.bundle,
        "files": result.files,
        "errors": result.errors,
        "allowed": result.allowed,
        "ok": result.ok,
    }
    lines = [f"{result.files} files are as the manifest says"]
    for file, error in result.errors.items():
        allowed = result.allowed[file]
        lines.append(f"{file}: differs from its recorded outputs by {error:.1e} (allowed: {allowed:.1e})")
    if args.against:
        from torchless.export.parity import compare

        bundle = read_bundle(args.bundle)
        parity = compare(bundle, args.against)
        report["against"] = {name: parity[name] for name in ("against", "max_abs_error", "largest_output")}
        lines.append(f"differs from {parity['against']} by {parity['max_abs_error']:.1e}")
        lossy = bundle.manifest.recipe is not None
        own = parity | {"max_abs_error": 3 * (bundle.manifest.parity or {}).get("max_abs_error", 0)}
        # Other inputs than those of the record: a quantized bundle may be some way further off on them.
        report["ok"] = result.ok and parity["max_abs_error"] <= tolerance(own, lossy=lossy)
    print(json.dumps(report) if args.json else "\n".join(lines))
    if result.ok and not report["ok"]:
        raise BundleError(f"{args.bundle} computes something else than {args.against}: export it again")
    if not result.ok:
        raise BundleError(
            f"{args.bundle} computes something else here than where it was made: export it again here"
        )
