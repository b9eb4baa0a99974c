"""What `torchless run` is asked: texts from arguments, files and standard input, as the fields of the task."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from torchless.cli.forms import FORMS, LISTS, Item
from torchless.errors import InputError

TEXTUAL = ("prompt", "text", "context", "question", "query", *LISTS)  # what TEXT can stand for
FLAGS = {"text": "TEXT", "text_pair": "--pair", "passages": "TEXT"}  # how a field without an option is given


def read_items(args: argparse.Namespace, task: str, given: Item) -> list[Item]:
    """The items to ask about, in order. given: the fields that options have filled, for every item.

    Raises InputError for fields that are missing or unknown, and for input that is not UTF-8 or not JSON.
    """
    form = FORMS[task]
    if args.json_lines:
        return [item_of_json(line, task, given, place) for place, line in _lines(args)]
    pairs = [{**given, "text": first, "text_pair": second} for first, second in args.pair or ()]
    more = bool(args.texts) or args.file is not None
    if pairs and not more:
        return pairs
    missing = [name for name in form.fields if name not in given]
    if not missing and more:
        raise InputError(f"{task} has all it needs from its options: leave TEXT out")
    if not missing:
        return [given]
    name = only(missing, task)
    whole = name == "prompt" and not args.lines
    return pairs + items_of([text for _, text in _lines(args, whole=whole)], name, given)


def type_items(args: argparse.Namespace, task: str, given: Item) -> Iterator[Item | InputError]:
    """An item for each line that is typed or piped, until the end of the file; for a wrong line, its error."""
    name = "" if args.json_lines else only([name for name in FORMS[task].fields if name not in given], task)
    if name in LISTS:
        raise InputError(f"-i asks for one text at a time, and {name} are several: add --json-lines")
    stream = _standard_input()
    while True:
        try:
            line = input("> " if stream.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            continue
        try:
            yield item_of_json(line, task, given) if args.json_lines else {**given, name: line}
        except InputError as error:
            yield error


def items_of(texts: Sequence[str], name: str, given: Item) -> list[Item]:
    """An item for each text; a field that is a list takes all of them."""
    return [{**given, name: list(texts)}] if name in LISTS else [{**given, name: text} for text in texts]


def only(missing: Sequence[str], task: str) -> str:
    """The field that TEXT fills. InputError where there are more, or none."""
    fields = FORMS[task].fields
    if len(missing) == 1 and missing[0] in TEXTUAL:
        return missing[0]
    flags = " and ".join(FLAGS.get(name, "--" + name.replace("_", "-")) for name in fields)
    either = ", one of them as TEXT" if "TEXT" not in flags and "--pair" not in flags else ""
    raise InputError(f"{task} needs {flags}{either}; or --json-lines with {', '.join(fields)}")


def item_of_json(line: str, task: str, given: Item, place: str = "the line") -> Item:
    """A line's object, with the fields that options have given. An id in it comes back with the answer."""
    form = FORMS[task]
    known = (*form.fields, *form.optional, "id")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{place} is no JSON object: give one with {', '.join(known)}")
    if unknown := [name for name in fields if name not in known]:
        raise InputError(f"{place}: {', '.join(unknown)} is no field of {task} (known: {', '.join(known)})")
    item = {**given, **fields}
    if missing := [name for name in form.fields if name not in item]:
        raise InputError(f"{place} lacks {', '.join(missing)}, which {task} needs")
    return item


def _lines(args: argparse.Namespace, *, whole: bool = False) -> Iterator[tuple[str, str]]:
    """(place, text) of every TEXT and of every line that is not empty; with `whole`, of each input as one text."""
    inputs = [*args.texts, *([] if args.file is None else [args.file])]
    if (args.texts.count("-") + (args.file == "-")) > 1:
        raise InputError("standard input can be read once only: give - once")
    if not inputs and _standard_input().isatty():
        args.usage_error("give a TEXT, - to read standard input, --file or -i")
    for number, text in enumerate(inputs or ["-"], 1):
        if text == "-":
            yield from _split("standard input", _standard_input().buffer.read(), whole)
        elif number > len(args.texts):
            yield from _split(text, _read(text), whole)
        else:
            yield f"TEXT {number}", text


def _split(place: str, content: bytes, whole: bool) -> Iterator[tuple[str, str]]:
    try:
        text = content.decode("utf-8-sig")  # Windows' editors begin files with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8 ({error.reason} at byte {error.start:,})") from None
    if whole:
        yield place, text.rstrip("\r\n")
        return
    # Not splitlines, which also breaks at form feeds and Unicode's line separators.
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if line.strip():
            yield f"{place}, line {number}", line


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"--file {path} cannot be read ({error})") from None


def _standard_input() -> TextIO:
    if sys.stdin is None:  # closed by the shell, or a program without a console
        raise InputError("standard input is closed: give a TEXT or --file")
    return sys.stdin
