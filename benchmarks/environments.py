"""The environments of generation.py and encoder.py: one a contender, so that none has to agree with another.

    python benchmarks/environments.py [FOLDER] [--only NAME,...] [--torch-index URL]

What is there as wanted stays; torchless is installed anew each time, from this working tree. llama.cpp is compiled
for this processor, which takes a compiler and about ten minutes. What cannot be installed is told in one line and
left out; the exit code is then 1. On Linux plain `pip install torch` brings CUDA along, which
--torch-index https://download.pytorch.org/whl/cpu (or the variable TORCH_INDEX) does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv-generation"
RECORD = "installed.json"  # written last: an environment without it is unfinished
OURS = "torchless"
TORCH = "torch==2.13.0"
TRANSFORMERS = "transformers==5.23.0"
TRANSFORMERS_4 = "transformers<4.58"
CTRANSLATE2 = "ctranslate2==4.8.5"
OPENVINO = "openvino==2026.4.1"
# Tools that only convert a model have environments of their own, so that they add nothing to a contender's size.
ENVIRONMENTS: dict[str, list[str]] = {
    OURS: [".[cpu]"],
    "torch": [TORCH, TRANSFORMERS],
    # accelerate: without it optimum writes the embedding and the head, which are one matrix, twice.
    "optimum": [TORCH, "optimum-onnx==0.1.0", TRANSFORMERS_4, "onnx", "onnxruntime==1.32.0", "accelerate"],
    "ctranslate2": [CTRANSLATE2, "tokenizers"],
    # CTranslate2's converter of BERT breaks on transformers 5.
    "ctranslate2-converter": [CTRANSLATE2, TORCH, TRANSFORMERS_4],
    "llama.cpp": ["llama-cpp-python==0.3.36"],
    "gguf": ["gguf==0.19.0", "safetensors"],
    "openvino": [OPENVINO],
    "openvino-converter": [OPENVINO, "nncf==3.4.0", TORCH, TRANSFORMERS],
}

# GCC 12's ldtilecfg reads 8 of 64 bytes as far as its optimizer knows (bug 114098), which drops the stores of the
# rest: so built, llama.cpp crashes on processors with AMX, and without AMX it has two thirds of the speed. A wheel
# in pip's cache could have been built without these flags.
FLAGS = {
    "llama.cpp": (["--no-cache-dir"], {"CXXFLAGS": "-fno-tree-dse -fno-dse"}),
}


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def record_of(environment: Path) -> dict[str, Any] | None:
    """What is installed: `wanted` requirements, `versions` by package, `bytes` on disk. None where nothing is."""
    try:
        record: dict[str, Any] = json.loads((environment / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return record


class InstallError(Exception):
    """pip failed, with the line of its output that says why."""


def pip(
    environment: Path, *arguments: str, cwd: Path | None = None, variables: dict[str, str] | None = None
) -> str:
    command = [sys.executable, "-m", "pip", "--python", str(python_of(environment)), *arguments]
    env = os.environ | (variables or {})
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"pip ended with {done.returncode}"]
        told = [line for line in lines if line.startswith("ERROR")] or lines
        raise InstallError(told[-1])
    return done.stdout


def install(environment: Path, wanted: list[str], torch_index: str | None) -> None:
    """Make the environment anew. Raises InstallError."""
    shutil.rmtree(environment, ignore_errors=True)
    # Without pip, so that the folder holds what the contender needs and nothing else.
    venv.create(environment, with_pip=False)
    if TORCH in wanted and torch_index:
        pip(environment, "install", TORCH, "--index-url", torch_index)
    with tempfile.TemporaryDirectory(prefix="torchless-") as copy:
        if environment.name == OURS:  # built from a copy: setuptools leaves its work where it builds
            for name in ("runtime", "export", "quantize"):
                shutil.copytree(ROOT / name, Path(copy) / name, ignore=shutil.ignore_patterns("__pycache__"))
            for name in ("pyproject.toml", "README.md", "LICENSE"):
                shutil.copy(ROOT / name, copy)
        options, variables = FLAGS.get(environment.name, ([], {}))
        pip(environment, "install", *options, *wanted, cwd=Path(copy), variables=variables)
    listed = json.loads(pip(environment, "list", "--format", "json"))
    record = {
        "wanted": wanted,
        "versions": {one["name"]: one["version"] for one in listed},
        "bytes": sum(file.stat().st_size for file in environment.glob("**/site-packages/**/*") if file.is_file()),
    }
    (environment / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def set_up(folder: Path, names: list[str], torch_index: str | None) -> list[str]:
    """Install what is missing; the names of those that could not be."""
    failed = []
    for name in names:
        wanted, record = ENVIRONMENTS[name], record_of(folder / name)
        if record is not None and record["wanted"] == wanted and name != OURS:
            print(f"{name}: there, {record['bytes'] / 1e6:,.0f} MB")
            continue
        print(f"{name}: pip install {' '.join(wanted)} ...", flush=True)
        try:
            install(folder / name, wanted, torch_index)
        except (InstallError, OSError) as error:
            print(f"{name}: left out ({error})", file=sys.stderr)
            failed.append(name)
        else:
            record = record_of(folder / name)
            assert record is not None
            print(f"{name}: installed, {record['bytes'] / 1e6:,.0f} MB")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--only", help="names, with commas between: " + ", ".join(ENVIRONMENTS))
    parser.add_argument("--torch-index", default=os.environ.get("TORCH_INDEX"), help="where pip finds torch")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(ENVIRONMENTS)
    if unknown := [name for name in names if name not in ENVIRONMENTS]:
        parser.error(f"--only {','.join(unknown)}: known are {', '.join(ENVIRONMENTS)}")
    sys.exit(1 if set_up(args.folder, names, args.torch_index) else 0)


if __name__ == "__main__":
    main()
