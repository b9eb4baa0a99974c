"""benchmarks/parity.py runs, and docs/parity.md, which it has made, has a row for all that the code offers."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from torchless.export.families import FAMILIES
from torchless.tasks import TASKS

ROOT = Path(__file__).parents[1]
SCRIPT, PAGE = ROOT / "benchmarks" / "parity.py", ROOT / "docs" / "parity.md"
Key = tuple[str, str, str]  # family, class, task


def rows_of(page: Path) -> dict[Key, list[str]]:
    """The cells behind family (or the trained weights' name), class and task."""
    lines = [line.strip("| ").split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if "|" in line]
    return {(cells[0], cells[1], cells[2]): cells[3:] for cells in lines if cells[2] in TASKS}


def offered() -> set[Key]:
    """Every family, class and task of the code; several tasks can share a head that has no labels of its own."""
    found = set()
    for name, family in FAMILIES.items():
        for kind, head in importlib.import_module(f"torchless.export.families.{family.file}").HEADS.items():
            tasks = [task for task, row in TASKS.items() if row.head == head.task]
            found |= {(name, family.prefix + kind, t) for t in tasks if t == head.task or not head.labels}
    return found


def run(*arguments: Any) -> None:
    done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_page_names_every_family_and_head() -> None:
    missing = offered() - rows_of(PAGE).keys()
    assert not missing, f"run benchmarks/parity.py again: docs/parity.md lacks {sorted(missing)}"


def test_the_page_has_every_error_below_the_tolerance_and_every_result_the_same() -> None:
    rows = rows_of(PAGE)
    assert len(rows) >= len(offered())
    for key, cells in rows.items():
        assert max(float(cell) for cell in cells[:4]) < 1e-4, key
        same, texts = map(int, cells[5].split(" of "))
        known = (key[0], key[2]) == ("modernbert", "question-answering")  # the page says so
        assert texts - same == known, key


def test_the_script_measures_a_head_and_writes_its_row(tmp_path: Path) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "page.md"
    run(
        "--families",
        "bert",
        "--tasks",
        "next-sentence-prediction",
        "--json",
        figures,
        "--table",
        figures,
        "--page",
        page,
    )
    (row,) = json.loads(figures.read_text(encoding="utf-8"))["rows"]
    assert row["same"] == row["texts"] == 20
    assert all(0 < error < 1e-4 for kind in ("single", "ragged") for error in row[kind].values())
    assert 0 < row["difference"] < 1e-4
    assert list(rows_of(page)) == [("bert", "BertForNextSentencePrediction", "next-sentence-prediction")]
    assert "all of it holds" in page.read_text(encoding="utf-8")
