"""torchless serve BUNDLE..."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchless.errors import InputError

KEY = "TORCHLESS_API_KEY"


def add(commands: Any) -> None:
    command = commands.add_parser(
        "serve",
        help="answer over HTTP, in OpenAI's formats",
        description="Answer over HTTP in OpenAI's formats: /v1/models, /v1/completions, /v1/chat/completions, "
        "/v1/embeddings, and /v1/classifications, which is torchless's own. It listens to this machine only. The "
        "first line on standard error says where: `torchless: serving NAMES at http://127.0.0.1:PORT`. Ctrl-C and "
        "SIGTERM end it. Needs the extra `serve`; docs/serve.md tells the rest.",
    )
    command.add_argument(
        "bundles", metavar="BUNDLE", nargs="+", help="a bundle, known by its folder's name, or NAME=BUNDLE"
    )
    command.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    command.add_argument("--port", type=int, default=8000, help="0: a free one (default: 8000)")
    command.add_argument(
        "--allow-remote", action="store_true", help="let --host be one that other machines can reach"
    )
    command.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name that requests call it by, too"
    )
    command.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN", help="web pages that may ask; *: all"
    )
    command.add_argument("--api-key", metavar="KEY", help=f"that requests must bring (or {KEY}, which nobody sees)")
    command.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="texts continued together (default: 8)"
    )
    command.add_argument("--queue", type=int, default=64, metavar="N", help="texts that may wait (default: 64)")
    command.add_argument(
        "--max-body", type=int, default=8 << 20, metavar="BYTES", help="of a request (default: 8 MiB)"
    )
    command.add_argument(
        "--stop-at-eof", action="store_true", help="end when standard input does, as when the parent has died"
    )
    command.add_argument(
        "--provider", default="cpu", help="cpu (default), cuda, tensorrt, openvino, directml, coreml or auto"
    )
    command.add_argument("--threads", type=int, help="threads of one operator (default: one a physical core)")
    command.add_argument(
        "--download", action="store_true", help="BUNDLE is a model of the Hugging Face hub, org/name: fetch it once"
    )
    command.set_defaults(act=act)


def act(args: argparse.Namespace) -> None:
    import torchless
    from torchless.serve import Options, server

    options = Options(
        host=args.host,
        port=args.port,
        allow_remote=args.allow_remote,
        allow_hosts=tuple(args.allow_host),
        allow_origins=tuple(args.allow_origin),
        api_key=args.api_key if args.api_key is not None else os.environ.get(KEY),
        batch_size=args.batch_size,
        queue=args.queue,
        max_body=args.max_body,
    )
    paths = named(args.bundles, args.download)
    given = {"provider": args.provider, "threads": args.threads, "download": args.download}
    running = server({name: torchless.load(path, **given) for name, path in paths.items()}, options)
    if not options.local and options.api_key is None:
        print("torchless: everybody who reaches this address can ask: give --api-key", file=sys.stderr)
    print(f"torchless: serving {', '.join(paths)} at {running.url}", file=sys.stderr, flush=True)
    if args.stop_at_eof:
        threading.Thread(target=wait_for_end, args=[running.stop], name="torchless-stdin", daemon=True).start()
    running.run()


def wait_for_end(stop: Any) -> None:
    """Read standard input until it ends."""
    while sys.stdin is not None and os.read(sys.stdin.fileno(), 1 << 12):
        pass
    stop()


def named(bundles: Sequence[str], download: bool) -> dict[str, str]:
    """Paths by the names that requests give. InputError for a name that comes twice."""
    found: dict[str, str] = {}
    for bundle in bundles:
        name, equals, path = bundle.partition("=")
        if not equals or Path(bundle).exists():
            path = bundle
            name = bundle if download and not Path(bundle).exists() else Path(os.path.abspath(bundle)).name
        if not name or not path:
            raise InputError(f"{bundle!r}: give BUNDLE or NAME=BUNDLE")
        if name in found:
            raise InputError(f"two bundles are called {name}: give one of them another name, NAME={path}")
        found[name] = path
    return found
