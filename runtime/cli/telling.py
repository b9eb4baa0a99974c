"""How the command line tells an error: one line on standard error, in the words of its own options."""

from __future__ import annotations

import re
import sys

ARGUMENT = re.compile(r"\b(pass|or|with) ([a-z]\w*)=(True\b|\d+|'[^']*'|)")  # as Python's callers are told


def tell(error: Exception | str, place: str = "") -> None:
    """place: where the question was read that could not be answered."""
    print(f"torchless: {place}{': ' if place else ''}{with_flags(str(error))}", file=sys.stderr)


def with_flags(message: str) -> str:
    """`pass stride=` becomes `pass --stride`, `pass keep=4` `pass --keep 4`; `--x (--x)` is said once."""

    def flag(found: re.Match[str]) -> str:
        if found[2] == "errors":  # of bytes.decode, which is Python's
            return found[0]
        value = "" if found[3] in ("", "True") else f" {found[3]}"
        return f"{found[1]} --{found[2].replace('_', '-')}{value}"

    return re.sub(r"(--[\w-]+) \(\1\)", r"\1", ARGUMENT.sub(flag, message))
