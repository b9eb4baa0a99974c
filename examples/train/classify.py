"""From a table of texts and labels to an int8 bundle that tells them apart: GPT or BERT, in one command.

    python classify.py mails.csv --base ../checkpoints/sotu-gpt --out spam-gpt

DATA is a CSV file with a header, or JSON lines, with the columns `text` and `label` (and `text_pair`, where pairs
are to be judged). A fifth of it, chosen by a hash of the text, is held out, unless --test names a file of its own.
The checkpoint, the float32 bundle and the int8 bundle go into OUT, and both bundles are measured on what was held
out.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from checkpoint import write_checkpoint
from finetune import (
    DELIMITER,
    EXTRACT,
    START,
    Text,
    classifier_loss,
    encode,
    is_gpt,
    learn,
    longest,
    open_classifier,
)
from transformers import PreTrainedModel

import torchless
from torchless.bundle import read_bundle
from torchless.errors import TorchlessError
from torchless.export import export
from torchless.quantize import quantize

HERE = Path(__file__).parent
HELD_OUT = 5  # one text in so many

Row = tuple[Text, str]


def read_rows(path: Path, text: str, pair: str, label: str) -> list[Row]:
    """(text or pair, label) of every row. Exits with a sentence for a file that has no such columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if path.suffix.lower() == ".csv":
                rows: list[object] = list(csv.DictReader(stream))
            else:
                rows = [json.loads(line) for line in stream if line.strip()]
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        sys.exit(f"{path} cannot be read: {error}")
    if not rows:
        sys.exit(f"{path} holds no rows")
    return [read_row(f"{path}: row {number}", row, text, pair, label) for number, row in enumerate(rows, 1)]


def read_row(place: str, row: object, text: str, pair: str, label: str) -> Row:
    """A row's text, or pair, and its label, which may be a whole number. Exits for what is something else."""
    if not isinstance(row, dict):
        sys.exit(f"{place} is a {type(row).__name__}, not an object with {text} and {label}")
    if missing := [name for name in (text, label) if row.get(name) in (None, "")]:
        sys.exit(f"{place} has no {' and no '.join(missing)}: name the columns with --text, --label")
    second = row.get(pair) or None
    for name, value in {text: row[text], pair: second, label: row[label]}.items():
        number = name == label and type(value) is int
        if value is not None and not isinstance(value, str) and not number:
            sys.exit(f"{place}: {name} is a {type(value).__name__}, expected text")
        if any("\ud800" <= character <= "\udfff" for character in str(value)):
            sys.exit(f"{place}: {name} holds half a character (a lone surrogate): mend the file")
    return (row[text] if second is None else (row[text], second)), str(row[label])


def in_order(labels: set[str]) -> list[str]:
    """Numbers by size, others by the alphabet."""
    return sorted(labels, key=int if all(label.isdecimal() for label in labels) else str)


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Those to learn from, and those held out; the same text is always on the same side."""
    parts: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        digest = hashlib.sha256(str(row[0]).encode()).digest()
        parts[int.from_bytes(digest[:4], "big") % HELD_OUT == 0].append(row)
    return parts


def fine_tune(args: argparse.Namespace, rows: Sequence[Row], labels: Sequence[str]) -> Path:
    """Train, and write the checkpoint; its folder."""
    model, tokenizer = open_classifier(args.base, labels)
    limit = min(args.max_length or 10**9, longest(model.config))
    encodings = encode(tokenizer, [text for text, _ in rows], limit)
    targets = torch.tensor([labels.index(label) for _, label in rows])
    dtype = getattr(torch, args.dtype)

    def loss_of(batch: Sequence[int]) -> torch.Tensor:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            return classifier_loss(model, [encodings[i] for i in batch], targets[batch])

    shown = np.arange(0, len(rows), max(1, len(rows) // 200))  # a glance at the loss, nothing is chosen by it

    def judge() -> float:
        return float(np.mean([loss_of(shown[i : i + 16]).item() for i in range(0, len(shown), 16)]))

    state = args.out / f"training-{run_name(args, rows)}.state"
    learn(
        model, [encoding.ids for encoding in encodings], loss_of, judge, state=state,
        epochs=args.epochs, lr=args.lr, minutes=args.minutes, seed=args.seed,
    )  # fmt: skip
    write_checkpoint(model, tokenizer, tokenizer_settings(model, args.base, limit), args.out / "checkpoint")
    state.unlink()
    return args.out / "checkpoint"


def run_name(args: argparse.Namespace, rows: Sequence[Row]) -> str:
    """Other texts or settings are another run, which must not go on from this one's state."""
    settings = [str(args.base), args.epochs, args.lr, args.seed, args.max_length, args.dtype]
    return hashlib.sha256(repr([rows, *settings]).encode()).hexdigest()[:8]


def tokenizer_settings(model: PreTrainedModel, base: Path, limit: int) -> dict:
    path = base / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if is_gpt(model):
        settings |= {
            "additional_special_tokens": [START, DELIMITER, EXTRACT],
            "pad_token": settings.get("eos_token"),
        }
    return {**settings, "model_max_length": limit}


def measure(bundle: Path, rows: Sequence[Row], max_length: int | None) -> tuple[list[str], str]:
    """The labels that a bundle gives, and a line of figures."""
    with torchless.load(bundle) as model:
        texts, limit = [text for text, _ in rows], min(max_length or 10**9, model.context_length)
        found = [one.label for one in model(texts, truncation=True, max_length=limit)]
    pairs = Counter(zip(found, [label for _, label in rows], strict=True))
    right = sum(count for (guess, label), count in pairs.items() if guess == label)
    scores = []
    for label in model.labels:
        hit = pairs[label, label]
        wrong = sum(count for both, count in pairs.items() if label in both) - hit
        scores.append(2 * hit / max(1, 2 * hit + wrong))
    size = read_bundle(bundle).size / 1e6
    return found, f"{size:6.1f} MB  accuracy {right / len(rows):.2%}  macro F1 {np.mean(scores):.2%}"


def whole(text: str) -> int:
    """argparse's type of a count."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of 1 or more")
    return int(text)


def above_zero(text: str) -> float:
    """argparse's type of a rate or a time."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="CSV with a header, or JSON lines")
    parser.add_argument("--test", type=Path, help="held-out rows, instead of a fifth of DATA")
    parser.add_argument(
        "--base", type=Path, default=HERE.parent / "checkpoints" / "mail-bert", help="GPT-2 or BERT"
    )
    parser.add_argument("--out", type=Path, default=Path("classifier"), help="folder for all that is made")
    parser.add_argument("--text", default="text", help="column of the text")
    parser.add_argument("--pair", default="text_pair", help="column of a second text, where there is one")
    parser.add_argument("--label", default="label", help="column of the label")
    parser.add_argument("--max-length", type=whole, help="tokens of a text that are read (default: the context)")
    parser.add_argument("--epochs", type=whole, default=3)
    parser.add_argument("--minutes", type=above_zero, help="end the training after this long")
    parser.add_argument("--lr", type=above_zero, default=2.5e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=whole, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = read_rows(args.data, args.text, args.pair, args.label)
    rows, held = (rows, read_rows(args.test, args.text, args.pair, args.label)) if args.test else split(rows)
    labels = in_order({label for _, label in rows})
    if len(labels) < 2:
        sys.exit(f"{args.data} has only the label {', '.join(labels)}: two are needed to tell apart")
    if not held or (strange := {label for _, label in held} - set(labels)):
        sys.exit(f"labels held out but never learned: {strange}" if held else "too few rows to hold any out")
    print(f"{len(rows):,} texts to learn from, {len(held):,} held out, labels: {', '.join(labels)}", flush=True)

    checkpoint = fine_tune(args, rows, labels)
    fp32 = export(checkpoint, args.out / "fp32", overwrite=True)
    int8 = quantize(fp32, args.out / "int8", overwrite=True)
    first, figures = measure(fp32, held, args.max_length)
    print(f"\nfp32  {figures}")
    second, figures = measure(int8, held, args.max_length)
    same = sum(a == b for a, b in zip(first, second, strict=True)) / len(held)
    print(f"int8  {figures}  same label for {same:.1%}\n\ntorchless run {int8} 'a text'")


if __name__ == "__main__":
    try:
        main()
    except TorchlessError as error:
        sys.exit(str(error))
