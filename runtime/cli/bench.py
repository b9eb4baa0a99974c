"""torchless bench BUNDLE… --data FILE"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torchless.errors import InputError

if TYPE_CHECKING:
    from torchless.quantize.sensitivity import Sensitivity


def add(commands: Any) -> None:
    command = commands.add_parser(
        "bench",
        help="quality, speed, size and memory of bundles beside each other",
        description="Measure bundles of one model in turn, with 95 % intervals. The first, usually the one in "
        "float32, is what the others are compared with; what is no more than chance is not called a difference.",
    )
    command.add_argument("bundles", metavar="BUNDLE", nargs="+", help="a bundle; the first is the reference")
    command.add_argument(
        "--data",
        metavar="FILE",
        help="what quality is measured on: JSON lines or CSV with text and label, plain text for language models; "
        "without it, only speed, start, memory and size are measured",
    )
    command.add_argument("--text-column", metavar="NAME", help="of the data (default: text)")
    command.add_argument("--label-column", metavar="NAME", help="of the data (default: label)")
    command.add_argument("--examples", type=_count, metavar="N", help="score at most N examples (default: all)")
    command.add_argument(
        "--lengths", type=_counts, metavar="N,N", help="time texts of so many tokens (default: 16,128)"
    )
    command.add_argument(
        "--batches", type=_counts, metavar="N,N", help="and so many of them at once (default: 1,8)"
    )
    command.add_argument("--repeats", type=_count, metavar="N", help="rounds of timing, 2 or more (default: 7)")
    command.add_argument("--threads", type=int, help="threads of one operator (default: one a physical core)")
    command.add_argument("--no-speed", action="store_true", help="measure quality and size only")
    command.add_argument("--no-quality", action="store_true", help="measure no quality; the data is read for speed")
    command.add_argument(
        "--sensitivity",
        metavar="RECIPE",
        help="add how sensitive each layer of the first bundle, in float32, is to this recipe (JSON and HTML)",
    )
    command.add_argument("--json", metavar="FILE", help="write the results as JSON")
    command.add_argument("--csv", metavar="FILE", help="write them as CSV, one row a bundle and measure")
    command.add_argument(
        "--html", metavar="FILE", help="write them as a page with plots (needs torchless[quantize])"
    )
    command.set_defaults(act=act)


def act(args: argparse.Namespace) -> None:
    from torchless.quantize.bench import Options, bench
    from torchless.quantize.report.files import FORMATS, check_outputs, write
    from torchless.quantize.report.table import table
    from torchless.quantize.sensitivity import sensitivity

    outputs = {form: path for form in FORMATS if (path := getattr(args, form)) is not None}
    check_outputs(outputs, [args.data] if args.data else [])
    names = ("lengths", "batches", "repeats", "examples", "threads", "text_column", "label_column")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    options = Options(speed=not args.no_speed, quality=not args.no_quality, **given)
    if args.sensitivity and (args.text_column or args.label_column):
        raise InputError("--sensitivity reads the columns text and label: name them so in the data")
    with Progress() as progress:
        rows: Sequence[Sensitivity] = ()
        if args.sensitivity:  # first: it takes seconds, and may refuse the bundle
            rows = sensitivity(args.bundles[0], recipe=args.sensitivity, data=args.data, progress=progress)
        results = bench(args.bundles, args.data, options, progress=progress)
    results = dataclasses.replace(results, sensitivity=tuple(map(dataclasses.asdict, rows)) or None)
    write(results, outputs)
    wide = {"width": shutil.get_terminal_size().columns} if sys.stdout.isatty() else {}
    print(table(results, **wide), end="")


class Progress:
    """One line on standard error, written over again and again; nothing where that is no terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr is not None and sys.stderr.isatty()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._shown:
            print(f"\r\033[K{what} {done:,}/{total:,}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def clear(self) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _count(value: str) -> int:
    try:
        return _positive(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r}: give a whole number of 1 or more") from None


def _counts(value: str) -> list[int]:
    try:
        return [_positive(part) for part in value.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r}: give whole numbers, such as 16,128") from None


def _positive(value: str) -> int:
    count = int(value)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{value}: give a whole number of 1 or more")
    return count
