"""examples/ray_batch.py and pool_batch.py: each worker's labels are those of a direct call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from other_python import ROOT, python_with, run_with

from torchless.export import export
from torchless.quantize import quantize

MAILS = ROOT / "examples" / "data" / "heldout-mails.jsonl"


@pytest.fixture(scope="module")
def spam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spam")
    made = export(ROOT / "examples" / "checkpoints" / "spam-bert", folder / "fp32", check=False)
    return quantize(made, folder / "int8")


def check(done: subprocess.CompletedProcess[str], mails: int) -> None:
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{mails} of {mails} labels as by a direct call", done.stdout
    assert {line.split()[1] for line in lines[:-1]} == {"ham", "spam"}


def test_a_pool_of_processes_gives_the_labels_of_a_direct_call(spam: Path, tmp_path: Path) -> None:
    mails = tmp_path / "mails.jsonl"
    mails.write_text("".join(MAILS.read_text(encoding="utf-8").splitlines(keepends=True)[:100]), encoding="utf-8")
    command = [sys.executable, ROOT / "examples" / "pool_batch.py", spam, "--mails", mails]
    check(subprocess.run(command, capture_output=True, text=True, timeout=600), 100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "arguments"),
    [("ray[data]==2.60.0", ["ray_batch.py"]), ("dask[distributed]==2026.8.0", ["pool_batch.py", "--dask"])],
    ids=["ray", "dask"],
)
def test_a_local_cluster_gives_the_labels_of_a_direct_call(
    package: str, arguments: list[str], spam: Path, tmp_path: Path
) -> None:
    python = python_with(package, "onnxruntime==1.32.0")
    script, *options = arguments
    check(run_with(python, ROOT / "examples" / script, str(spam), *options, tree=tmp_path), 400)
