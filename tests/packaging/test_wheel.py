"""One wheel of plain Python, and an environment with only torchless[cpu] in which the bundles answer."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import torchless
from torchless import __version__

ROOT = Path(__file__).parents[2]
PACKAGES = {"runtime": "torchless", "export": "torchless/export", "quantize": "torchless/quantize"}
UNREACHABLE = ("Failed to establish a new connection", "Temporary failure in name resolution")
LARGEST = 250_000_000  # bytes of a whole environment, pip included


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    if done.returncode and any(sign in done.stderr for sign in UNREACHABLE):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a source archive that was built from a copy of the tree, as a publisher does."""
    tree = tmp_path_factory.mktemp("tree") / "torchless"
    for folder in PACKAGES:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    run(sys.executable, "-m", "build", "--outdir", tree.parent / "dist", tree)
    (made,) = (tree.parent / "dist").glob("*.whl")
    return made


def test_the_wheel_is_of_plain_python_and_holds_every_file_of_the_three_rooms(wheel: Path) -> None:
    assert wheel.name == f"torchless-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())
    source = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in PACKAGES.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert inside == source | {"torchless/py.typed"}


def test_the_wheel_asks_for_numpy_and_tokenizers_only_and_onnxruntime_by_extra(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
        (entry,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        entries = archive.read(entry).decode()
        assert "torchless = torchless.cli:main" in entries
        assert "hook-dirs = torchless._pyinstaller:hook_dirs" in entries
    asked = metadata.get_all("Requires-Dist") or []
    assert sorted(one.split(">")[0] for one in asked if "extra ==" not in one) == ["numpy", "tokenizers"]
    assert {one.split(">")[0] for one in asked if 'extra == "cpu"' in one} == {"onnxruntime"}
    assert metadata["Requires-Python"] == ">=3.10"
    assert "Run GPT and BERT without torch" in str(metadata.get_payload())


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment into which only the wheel and its extra [cpu] were installed."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[cpu]")
    return python


ANSWER = """
import sys, torchless
gpt, bert = (torchless.load(path, verify=True) for path in sys.argv[1:])
print(gpt("The union", max_new_tokens=12).token_ids, bert("the union is strong").label)
"""


def test_both_bundles_answer_without_torch_in_less_than_250_mb(
    bare: Path, gpt_bundle: Path, bert_bundles: dict[str, Path], gpt: torchless.TextGeneration,
    classifier: torchless.TextClassification,
) -> None:  # fmt: skip
    answers = run(bare, "-I", "-c", ANSWER, gpt_bundle, bert_bundles["text-classification"])
    expected = f"{gpt('The union', max_new_tokens=12).token_ids} {classifier('the union is strong').label}"
    assert answers.strip() == expected
    files = [path for path in bare.parents[1].rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    assert 10_000_000 < size < LARGEST, f"{size / 1e6:.0f} MB"
    names = {line.split("==")[0] for line in run(bare, "-m", "pip", "freeze").splitlines()}
    assert not names & {"torch", "transformers", "onnx", "scipy", "safetensors"}


def test_the_command_runs_there_and_says_what_making_bundles_needs(
    bare: Path, gpt_bundle: Path, gpt_checkpoint: Path, tmp_path: Path
) -> None:
    command = bare.with_name("torchless.exe" if os.name == "nt" else "torchless")
    assert __version__ in run(command, "--version")
    assert run(command, "run", gpt_bundle, "The union", "--max-new-tokens", "5").strip()
    for making in (["export", gpt_checkpoint], ["quantize", gpt_bundle]):
        done = subprocess.run([command, *making, tmp_path / "out"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert "pip install" in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
