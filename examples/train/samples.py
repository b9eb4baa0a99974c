"""Cut the small files in examples/data/ out of what prepare.py wrote, for demos and tests that need no npm.

    python prepare.py && python samples.py

Everything in them is text that the committed checkpoints were not trained on.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

HERE = Path(__file__).parent
MAILS, CHARACTERS, BYTES = 400, 1500, 100_000
# Advertisements of this kind are left out of the sample (and only there), so that it can be shown to anybody.
EXPLICIT = re.compile(
    r"sex|porn|xxx|nude|naked|fuck|cunt|cock|dick|cum\b|whore|slut|pussy|teen|horny|hardcore|penis|viagra|"
    r"erotic|erection|adult|orgasm|incest|breast|girls|shit|bitch|nigger|lolita|rape|webcam|fetish|nasty|"
    r"livecam|knickers|over 18|18 years|bang bus|escort|steroid|lingerie|singles|ÃÐºÒ",
    re.I,
)
NUMBER = re.compile(r"\+?\d[\d ().-]{7,}\d")  # telephone numbers of people and firms of the time


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a file that prepare.py wrote."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def shorten(text: str, limit: int) -> str:
    """The text up to its last whole word within `limit` characters."""
    return text if len(text) <= limit else text[: limit + 1].rpartition(" ")[0].rstrip()


def mask_numbers(text: str) -> str:
    """Long numbers with every digit made 0."""
    return NUMBER.sub(lambda found: re.sub(r"\d", "0", found[0]), text)


def pick_mails(rows: list[dict]) -> list[dict]:
    """About 400 mails, evenly from the whole list, with its share of spam."""
    rows = [{**row, "text": mask_numbers(row["text"])} for row in rows]
    fit = [row for row in rows if not EXPLICIT.search(row["text"])]
    share = sum(row["label"] for row in rows) / len(rows)
    picked = []
    for label, count in ((0, round(MAILS * (1 - share))), (1, round(MAILS * share))):
        same = [(i, row) for i, row in enumerate(fit) if row["label"] == label]
        count = min(count, len(same))
        picked += [same[i * len(same) // count] for i in range(count)]
    texts = [row for _, row in sorted(picked, key=lambda pair: pair[0])]
    return [{"text": shorten(row["text"], CHARACTERS), "label": row["label"]} for row in texts]


def openings(rows: list[dict], size: int) -> str:
    """The opening of every text, about `size` bytes in all in equal shares, an empty line between them."""
    share = size // len(rows)
    return "\n\n".join(shorten(row["text"], share) for row in rows) + "\n"


def beginning(rows: list[dict], size: int) -> str:
    """The first texts whole, and as much of the next as `size` characters leave room for."""
    return shorten("\n\n".join(row["text"] for row in rows), size) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=HERE / "data", help="what prepare.py wrote")
    parser.add_argument("--out", type=Path, default=HERE.parent / "data")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    mails = pick_mails(read_jsonl(args.data / "mail-heldout.jsonl"))
    files = {
        "heldout-mails.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in mails),
        "heldout-sotu.txt": openings(read_jsonl(args.data / "sotu-heldout.jsonl"), BYTES),
        "moby-dick.txt": beginning(read_jsonl(args.data / "moby-dick.jsonl"), BYTES),
    }
    for name, text in files.items():
        (args.out / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{args.out / name}: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
