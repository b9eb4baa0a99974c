"""The texts that a model is measured or calibrated on: JSON lines, CSV with a header, or plain text."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from torchless.arguments import check_count, check_name
from torchless.errors import InputError
from torchless.tasks import TASKS
from torchless.text import Text, check_text

Fields = dict[str, Any]  # one line by column
T = TypeVar("T")

JSON_LINES = (".jsonl", ".json", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}
PLAIN = (".txt", ".text", ".md")

# What a task reads from a line, and what the data sets of Hugging Face call it.
NAMES = {
    "text": ("text", "sentence"),
    "text_pair": ("text_pair",),
    "label": ("label", "labels"),
    "words": ("words", "tokens"),
    "tags": ("tags", "ner_tags"),
    "question": ("question",),
    "context": ("context",),
    "answers": ("answers",),
    "choices": ("choices",),
}
LISTS = ("words", "tags", "choices", "answers")
# Tasks that one text alone is too little for.
FORMS = {
    "question-answering": ("question", "context"),
    "multiple-choice": ("context", "choices"),
    "next-sentence-prediction": ("text", "text_pair"),
}
SEED = 0


@dataclass(frozen=True)
class Example:
    """One line of the data, or one text of a plain file.

    place: where it stands, for messages: "mails.jsonl, line 7". text: what is read; a question that is answered, a
    context that is continued by `choices`, or the words with a space between them. text_pair: the second text, or
    the context of a question. label: as given, None for none (labels.py reads it). tags: one a word, names or ids.
    answers: texts, of which any is right; an empty tuple says that there is none, None that nobody knows.
    """

    place: str
    text: str
    text_pair: str | None = None
    label: Any = None
    words: tuple[str, ...] = ()
    tags: tuple[Any, ...] | None = None
    answers: tuple[str, ...] | None = None
    choices: tuple[str, ...] = ()
    question: str | None = None  # of multiple-choice, where there is one

    @property
    def given(self) -> Text:
        """What a model is called with: the text, or the pair."""
        return self.text if self.text_pair is None else (self.text, self.text_pair)


def read_examples(
    path: str | os.PathLike[str],
    task: str,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
) -> list[Example]:
    """The examples of a file, one or more, in its order; its name's end says what it is.

    .jsonl, .json, .ndjson: one object a line. .csv, .tsv: a header and rows; lists as JSON, or with spaces
    between words. .txt, .md: one document for text-generation, else one text a paragraph (an empty line between),
    for tasks that read one text. Columns: `text` (and `text_pair`) and `label`; `words` or `text`, and `tags`, for
    token-classification; `question`, `context` and `answers` (texts, or SQuAD's object); `context`, `choices`
    and `label` for multiple-choice. *_column: other names for them. Labels may be missing, but not from some.

    Raises InputError, with the line, for a file that cannot be read so.
    """
    check_name("task", task, TASKS)
    file = Path(path)
    if not os.path.lexists(file) or file.is_dir():  # before its name is found fault with
        raise InputError(f"{file} cannot be read: {'it is a folder' if file.is_dir() else 'there is no such file'}")
    end = file.suffix.lower()
    if end not in (*JSON_LINES, *TABLES, *PLAIN):
        known = ", ".join((*JSON_LINES, *TABLES, *PLAIN))
        raise InputError(f"{file}: the name says what a file is, and this one does not (known: {known})")
    content = _decode(file)
    if end in PLAIN:
        examples = _plain(file, content, task)
    else:
        columns = {"text": text_column, "text_pair": text_pair_column, "label": label_column}
        if task == "token-classification":
            columns |= {"words": text_column, "tags": label_column, "label": None}
        reader = Reader(task, {name: column for name, column in columns.items() if column is not None})
        rows = _json_lines(file, content) if end in JSON_LINES else _table(file, content, TABLES[end])
        examples = [reader.read(place, fields) for place, fields in rows]
    if not examples:
        raise InputError(f"{file} holds no text: give a file with at least one")
    for name in ("label", "tags", "answers"):
        _check_all_or_none(name, examples)
    return examples


def sample(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of them (None: all), in their order, always the same: files are often sorted by label."""
    if limit is None or len(items) <= check_count("limit", limit):
        return list(items)
    chosen = np.random.default_rng(SEED).choice(len(items), limit, replace=False)
    return [items[index] for index in np.sort(chosen)]


class Reader:
    """From a line's columns to an example of the task. columns: names of the user's, by ours."""

    def __init__(self, task: str, columns: dict[str, str]) -> None:
        self.task = task
        self.columns = columns
        self.needs = FORMS.get(task, ("text",))

    def read(self, place: str, fields: Fields) -> Example:
        found = {name: self._field(place, fields, name) for name in NAMES}
        if self.task == "token-classification" and found["words"] is not None:
            words = self._strings(place, "words", found["words"])
            tags = found["tags"] if found["tags"] is None else tuple(_list(place, "tags", found["tags"]))
            if tags is not None and len(tags) != len(words):
                raise InputError(f"{place}: {len(words)} words and {len(tags)} tags: give one tag a word")
            return Example(place, " ".join(words), words=words, tags=tags)
        for name in self.needs:
            if found[name] is None:
                raise self._missing(place, fields, name)
        if self.task == "question-answering":
            question, context = self._text(place, found, "question"), self._text(place, found, "context")
            return Example(place, question, context, answers=_answers(place, found["answers"]))
        if self.task == "multiple-choice":
            choices = self._strings(place, "choices", found["choices"])
            question = found["question"] and self._text(place, found, "question")
            context = self._text(place, found, "context")
            return Example(place, context, label=found["label"], choices=choices, question=question)
        pair = None if found["text_pair"] is None else self._text(place, found, "text_pair")
        return Example(place, self._text(place, found, "text"), pair, found["label"])

    def _field(self, place: str, fields: Fields, name: str) -> Any:
        """The value, or None; a column that was asked for must be there. An empty cell of a list is no list."""
        if name in self.columns:
            if (column := self.columns[name]) not in fields:
                if name == "words":  # text_column may name a text as well
                    return None
                raise InputError(f"{place}: no {column!r} (there is: {', '.join(map(str, fields))})")
            value = fields[column]
            return value if name != "words" or not isinstance(value, str) or value.startswith("[") else None
        return next((fields[one] for one in NAMES[name] if fields.get(one) is not None), None)

    def _missing(self, place: str, fields: Fields, name: str) -> InputError:
        have = ", ".join(map(str, fields)) or "nothing"
        hint = ", or name the column with text_column=" if name == "text" else ""
        return InputError(f"{place}: {self.task} needs {name!r} (there is: {have}): add it{hint}")

    def _text(self, place: str, found: Fields, name: str) -> str:
        text = check_text(found[name], f"{place}: {self.columns.get(name, name)}")
        if not text.strip():
            raise InputError(
                f"{place}: {self.columns.get(name, name)!r} is empty: give a text, or leave the line out"
            )
        return text

    def _strings(self, place: str, name: str, value: Any) -> tuple[str, ...]:
        given = _list(place, name, value)
        for one in given:
            if not check_text(one, f"{place}: {name}").strip():
                raise InputError(f"{place}: {name!r} holds an empty text: leave it out")
        if not given:
            raise InputError(f"{place}: {name!r} is empty: give at least one")
        return tuple(given)


def _list(place: str, name: str, value: Any) -> list[Any]:
    """A list, or a cell of a table that holds one: JSON, or words with spaces between them."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f"{place}: {name!r} begins like a JSON list and is none ({error})") from None
    elif isinstance(value, str) and name in ("words", "tags"):
        value = value.split()
    if not isinstance(value, list):
        raise InputError(f"{place}: {name!r} is {json.dumps(value)[:40]}: give a list")
    return value


def _answers(place: str, value: Any) -> tuple[str, ...] | None:
    """Texts, one text, or SQuAD's {"text": [...], "answer_start": [...]}."""
    if value is None:
        return None
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f"{place}: 'answers' begins like a JSON object and is none ({error})") from None
    if isinstance(value, dict):
        value = value.get("text")
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = [value] if value.strip() else []
    return tuple(check_text(one, f"{place}: answers") for one in _list(place, "answers", value))


def _check_all_or_none(name: str, examples: Sequence[Example]) -> None:
    without = [example.place for example in examples if getattr(example, name) is None]
    if without and len(without) < len(examples):
        raise InputError(f"{without[0]}: no {name}, other lines have one: give every line one, or none")


def _decode(file: Path) -> str:
    try:
        content = file.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error})") from None
    if b"\0" in content:
        raise InputError(f"{file} is a binary file: give text in UTF-8")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")  # Windows' editors begin files with a mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}, line {line}: not UTF-8 ({error.reason}): save it as UTF-8") from None


def _plain(file: Path, content: str, task: str) -> list[Example]:
    if task in FORMS:
        needs = " and ".join(FORMS[task])
        raise InputError(f"{file}: {task} needs {needs}, which plain text has not: give JSON lines or CSV")
    if task == "text-generation":
        return [Example(str(file), content.strip("\n"))] if content.strip() else []
    return [
        Example(f"{file}, line {content.count(chr(10), 0, found.start()) + 1}", found[0].strip())
        for found in re.finditer(r"\S.*?(?=\n[^\S\n]*\n|\Z)", content, re.DOTALL)
    ]


def _json_lines(file: Path, content: str) -> Iterator[tuple[str, Fields]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: no JSON ({error}): give one object a line") from None
        if not isinstance(fields, dict):
            raise InputError(f"{place}: a JSON {type(fields).__name__}: give one object a line")
        yield place, fields


def _table(file: Path, content: str, delimiter: str) -> Iterator[tuple[str, Fields]]:
    before = csv.field_size_limit(max(len(content), 1))  # its default refuses a cell of 128 KB
    try:
        rows = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
        header, start = next(rows, []), rows.line_num + 1
        if twice := [name for i, name in enumerate(header) if name and name in header[:i]]:
            raise InputError(f"{file} has the column {twice[0]!r} twice: give each a name of its own")
        for row in rows:
            place, start = f"{file}, line {start}", rows.line_num + 1
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{place}: {len(row)} cells, the header has {len(header)}: quote cells with {delimiter!r}"
                )
            yield place, {name: cell or None for name, cell in zip(header, row, strict=True)}
    except csv.Error as error:
        raise InputError(
            f"{file}, line {rows.line_num}: no CSV ({error}): end every cell that a quote begins with a quote, and "
            "write those inside twice"
        ) from None
    finally:
        csv.field_size_limit(before)
