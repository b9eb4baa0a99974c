"""What `torchless run` is asked: texts from arguments, files and standard input, as the fields of the task."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from torchless.cli.forms import FORMS, LISTS, Asked, Item
from torchless.errors import InputError

TEXTUAL = ("prompt", "text", "context", "question", "query", *LISTS)  # what TEXT can stand for
FLAGS = {"prompt": "TEXT", "text": "TEXT", "passages": "TEXT"}  # how a field without an option is given
EITHER = ("candidate_labels", "targets")  # fields that are a text or a list of texts


def read_items(args: argparse.Namespace, task: str, given: Item) -> Iterator[Asked]:
    """What is asked, in order. given: the fields that options have filled, for every item.

    A line that is wrong comes with its error. Raises InputError for fields that are missing, and for input that
    is not UTF-8.
    """
    form = FORMS[task]
    if args.json_lines:
        yield from (asked_of_json(line, task, given, place) for place, line in _lines(args))
        return
    for number, (first, second) in enumerate(args.pair or (), 1):
        yield Asked({**given, "text": first, "text_pair": second}, f"--pair {number}" if len(args.pair) > 1 else "")
    more = bool(args.texts) or args.file is not None
    if args.pair and not more:
        return
    missing = [name for name in form.fields if name not in given]
    if not missing and more:
        raise InputError(f"{task} has all it needs from its options: leave TEXT out")
    if not missing:
        yield Asked(given)
        return
    name = only(missing, task)
    lines = _lines(args, whole=form.whole and not args.lines)
    if name in LISTS:
        yield Asked({**given, name: [text for _, text in lines]})
        return
    yield from (Asked({**given, name: text}, place) for place, text in lines)


def type_items(args: argparse.Namespace, task: str, given: Item) -> Iterator[Asked]:
    """What is typed or piped, a line at a time, until the end of the file."""
    name = "" if args.json_lines else only([name for name in FORMS[task].fields if name not in given], task)
    if name in LISTS:
        raise InputError(f"-i asks for one text at a time, and {name} are several: add --json-lines")
    stream = _standard_input()
    while True:
        try:
            line = input("> " if stream.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield asked_of_json(line, task, given) if args.json_lines else Asked({**given, name: line})


def only(missing: Sequence[str], task: str) -> str:
    """The field that TEXT fills. InputError where there are more, or none."""
    fields = FORMS[task].fields
    if len(missing) == 1 and missing[0] in TEXTUAL:
        return missing[0]
    if "text_pair" in fields:
        needs = "--pair A B, and no TEXT"
    else:
        needs = " and ".join(FLAGS.get(name, "--" + name.replace("_", "-")) for name in fields)
        needs += "" if "TEXT" in needs else ", one of them as TEXT"
    raise InputError(f"{task} needs {needs}; or --json-lines with {', '.join(fields)}")


def asked_of_json(line: str, task: str, given: Item, place: str = "") -> Asked:
    """A line's object, with the fields that options have given. An id in it comes back with the answer."""
    fields: Any = None
    try:
        fields = _object(line, task)
        return Asked(_item_of(fields, task, given), place)
    except InputError as error:
        return Asked({"id": fields["id"]} if fields and "id" in fields else {}, place, error)


def _object(line: str, task: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InputError(f"no JSON object: give one with {', '.join(_known(task))}")
    return fields


def _item_of(fields: Mapping[str, Any], task: str, given: Item) -> Item:
    """The fields of the task; an optional one that is null is left out. InputError for what is no field of it."""
    form, known = FORMS[task], _known(task)
    if unknown := [name for name in fields if name not in known]:
        raise InputError(f"{', '.join(unknown)} is no field of {task} (known: {', '.join(known)})")
    item = {name: value for name, value in fields.items() if value is not None or name not in form.optional}
    for name, value in item.items():
        _check(name, value)
    item = {**given, **item}
    if missing := [name for name in form.fields if name not in item]:
        raise InputError(f"{', '.join(missing)} is missing, which {task} needs")
    return item


def _known(task: str) -> tuple[str, ...]:
    return (*FORMS[task].fields, *FORMS[task].optional, "id")


def _check(name: str, value: Any) -> None:
    """InputError for a field of another type than its task takes; an id may be anything."""
    texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
    ids = isinstance(value, list) and all(type(one) is int for one in value)
    kind, sound = "text", isinstance(value, str)
    if name in LISTS:
        kind, sound = "a list of texts", texts
    elif name in EITHER:
        kind, sound = "a text or a list of texts", sound or texts
    elif name == "prompt":
        kind, sound = "text, or a list of token ids", sound or ids
    if not sound and name != "id":
        among = f" with {json.dumps(value)[:60]}" if isinstance(value, list) else ""
        raise InputError(f"{name}: expected {kind}, got {type(value).__name__}{among}")


def _lines(args: argparse.Namespace, *, whole: bool = False) -> Iterator[tuple[str, str]]:
    """(place, text) of every TEXT and of every line that is not empty; with `whole`, of each input as one text.

    What is the only one needs no place.
    """
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
            yield f"TEXT {number}" if len(inputs) > 1 else "", text


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
