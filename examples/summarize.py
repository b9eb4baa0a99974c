"""A long text in pieces, each followed by `TL;DR:` and what the model then says (Radford et al., 2019).

The paper drew among the two likeliest tokens and kept three sentences; GPT-2 had read enough posts that end in
`TL;DR:` to go on with a summary, of a kind. sotu-gpt, which is used if no other bundle is named, has 6 million
parameters and has never seen one: it goes on in the manner of the text and sums up nothing. What this shows is the
way through a text that is longer than the context. Needs no torch.

    python examples/summarize.py [--bundle BUNDLE] [FILE]
"""

from __future__ import annotations

import argparse
import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path

import torchless
from torchless.export import export
from torchless.quantize import quantize

HERE = Path(__file__).parent
PROMPT = "\nTL;DR:"
NEW = 100  # tokens of a summary
SENTENCES = 3
SLACK = 4  # a piece alone may have a few tokens more than within the text


def default_bundle() -> Path:
    """sotu-gpt at int8, made once."""
    out = HERE / "out" / "sotu-gpt-int8"
    if not out.exists():
        print("exporting and quantizing sotu-gpt ...", file=sys.stderr)
        quantize(export(HERE / "checkpoints" / "sotu-gpt", HERE / "out" / "sotu-gpt", overwrite=True), out)
    return out


def pieces(gpt: torchless.TextGeneration, text: str) -> Iterator[str]:
    """The text in pieces that leave room for a summary, cut at the ends of sentences where these fit."""
    room = gpt.context_length - NEW - len(gpt.tokenizer.ids(PROMPT)) - SLACK
    if room < 1:
        raise torchless.InputError(f"the context of {gpt.context_length} tokens has no room for a summary of {NEW}")
    tokens = [start for start, _ in gpt.tokenizer.encode(text, special_tokens=False).offsets]
    ends = [found.end() for found in re.finditer(r"[.!?]\s+|\n\s*\n", text)]
    begin = 0
    while begin < len(text):
        last = bisect_left(tokens, begin) + room
        end = tokens[last] if last < len(tokens) else len(text)
        if end < len(text) and (within := bisect_right(ends, end)) and ends[within - 1] > begin:
            end = ends[within - 1]
        if piece := text[begin:end].strip():
            yield piece
        begin = end


def summary(gpt: torchless.TextGeneration, piece: str, seed: int) -> str:
    found = gpt(piece + PROMPT, max_new_tokens=NEW, top_k=2, seed=seed).text
    return " ".join("".join(re.findall(r".+?(?:[.!?](?=\s|\Z)|\Z)", found, re.DOTALL)[:SENTENCES]).split())


def read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise torchless.InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not text.strip():
        raise torchless.InputError(f"{path} holds no text")
    return text


def sum_up(text: str, bundle: Path, most: int | None, seed: int) -> None:
    with torchless.load(bundle) as gpt:
        if not isinstance(gpt, torchless.TextGeneration):
            raise torchless.InputError(f"{bundle} is not for text-generation: give the bundle of a GPT")
        found = list(pieces(gpt, text))[:most]
        for number, piece in enumerate(found, 1):
            print(f"\rpiece {number} of {len(found)} ...", end="", file=sys.stderr, flush=True)
            said = summary(gpt, piece, seed)
            print("\r\033[K" if sys.stderr.isatty() else "\n", end="", file=sys.stderr, flush=True)
            print(f"{number}. {' '.join(piece.split())[:60]} ...\n   {said}\n", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("file", nargs="?", type=Path, default=HERE / "data" / "heldout-sotu.txt")
    arguments.add_argument("--bundle", type=Path, help="of a GPT (default: sotu-gpt at int8)")
    arguments.add_argument("--pieces", type=int, metavar="N", help="read the first N pieces only")
    arguments.add_argument("--seed", type=int, default=1)
    args = arguments.parse_args()
    if args.pieces is not None and args.pieces < 1:
        arguments.error(f"--pieces {args.pieces}: give 1 or more")
    try:
        sum_up(read(args.file), args.bundle or default_bundle(), args.pieces, args.seed)
    except torchless.TorchlessError as error:
        print(f"summarize.py: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
