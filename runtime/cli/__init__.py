"""The command `torchless`: one file a subcommand, each with `add(commands)` and a function that runs it.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 a TorchlessError, 2 wrong
usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence

try:
    from torchless.cli import adopt, bench, doctor, export, inspect, quantize, run, sensitivity, serve, verify
    from torchless.cli.telling import tell
    from torchless.errors import TorchlessError
    from torchless.version import __version__
except KeyboardInterrupt:  # numpy takes most of the first half second, and `main` is not there yet
    print("\ntorchless: interrupted", file=sys.stderr)
    sys.exit(130)

COMMANDS = (export, adopt, quantize, sensitivity, bench, run, serve, inspect, verify, doctor)


OPTION = re.compile(r"--?[A-Za-z][\w-]*(=|$)")  # what begins with a dash and goes on otherwise is a text


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="torchless",
        description="Run GPT and BERT without torch: export a checkpoint, quantize it, and get answers from it.",
        epilog="`torchless COMMAND --help` tells more about each command.",
    )
    top.add_argument("--version", action="version", version=f"torchless {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Texts may stand before, between and after options, where argparse takes only those before."""
    top = parser()
    args, rest = top.parse_known_args(run.spell_out(sys.argv[1:] if arguments is None else arguments))
    end = rest.index("--") if "--" in rest else len(rest)
    if rest and (not hasattr(args, "texts") or any(OPTION.match(part) for part in rest[:end])):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.texts += rest[:end] + rest[end + 1 :]
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A pipe on Windows would fail at the first character outside its code page.
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")
    args = parse(arguments)
    if sys.stderr is not None:
        logging.basicConfig(format="%(name)s: %(message)s")
        if sys.stderr.isatty():  # such as that TensorRT is going to build for minutes
            logging.getLogger("torchless").setLevel(logging.INFO)
    if sys.stdout is None:  # `>&-`, or a program without a console
        print("torchless: standard output is closed", file=sys.stderr)
        return 1
    try:
        code = args.act(args)
        sys.stdout.flush()
        return code or 0
    except TorchlessError as error:
        tell(error)
        return 1
    except KeyboardInterrupt:
        print("\ntorchless: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()  # the reader has gone (`| head`): nothing is left to say
    except OSError as error:  # such as a full disk
        _drop_output()
        tell(error)
        return 1
    return 0


def _drop_output() -> None:
    """What is still buffered goes nowhere: flushing it at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
