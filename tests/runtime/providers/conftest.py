"""Environments with other wheels of onnxruntime, built once and kept; runs in them are subprocesses."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import standins
import tiny
from other_python import PATIENCE

from torchless.export import export
from torchless.manifest import MANIFEST
from torchless.quantize import quantize

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
KEPT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchless-tests"
GPU = "onnxruntime-gpu==1.31.1"
ELSEWHERE = ["openvino", "tensorrt", "cuda", "directml", "coreml", "cpu"]

Answers = list[dict[str, Any]]
Ask = Callable[..., Answers]


def environment(name: str, *packages: str) -> Path:
    """The Python of a virtual environment with these packages, made on the first call ever; skips where none is."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the wheels are those of Linux x86-64")
    if sys.version_info < (3, 11):
        pytest.skip("the wheels need Python 3.11")
    folder = KEPT / f"{name}-py{sys.version_info[0]}{sys.version_info[1]}"
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        command = [python, "-m", "pip", "install", "-q", "--only-binary=:all:", *packages, "numpy", "tokenizers"]
        try:
            made = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.skip(f"pip takes more than {PATIENCE} s for {' '.join(packages)}")
        if made.returncode:
            pytest.skip(f"pip cannot install {' '.join(packages)}: {made.stderr[-300:]}")
        (folder / "ready").touch()
    return python


@pytest.fixture(scope="session")
def runtime_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import torchless from; the environments need no installation of it."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "torchless").symlink_to(ROOT / "runtime")
    return folder


@pytest.fixture(scope="session")
def ask_python(runtime_path: Path) -> Callable[..., Answers]:
    """What became of the jobs in another Python (worker.py), which writes nothing to standard error."""

    def run(python: Path, jobs: Answers, *, dies: bool = False, **variables: Any) -> Answers:
        env = {
            **os.environ,
            "PYTHONPATH": str(runtime_path),
            **{name: str(value) for name, value in variables.items()},
        }
        command = [python, HERE / "worker.py"]
        done = subprocess.run(command, input=json.dumps(jobs), env=env, capture_output=True, text=True, timeout=300)
        if dies:
            assert done.returncode < 0, done.stdout  # by a signal
            return []
        assert (done.returncode, done.stderr) == (0, "")
        answers: Answers = json.loads(done.stdout)
        return answers

    return run


@pytest.fixture(scope="session")
def gpu_python() -> Path:
    return environment("onnxruntime-gpu-1.31.1", GPU)


@pytest.fixture(scope="session")
def bare(gpu_python: Path, ask_python: Any) -> Ask:
    """The GPU wheel on a machine without a driver."""
    return lambda *jobs, **variables: ask_python(gpu_python, jobs, **variables)


@pytest.fixture(scope="session")
def standing_in(gpu_python: Path, ask_python: Any, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """The GPU wheel with the stand-ins."""
    if not (shutil.which("gcc") and shutil.which("readelf")):
        pytest.skip("gcc and readelf build the stand-ins")
    folder = tmp_path_factory.mktemp("standins")
    (capi,) = gpu_python.parents[1].glob("lib/python*/site-packages/onnxruntime/capi")
    standins.build(capi, folder)
    return lambda *jobs, **variables: ask_python(gpu_python, jobs, LD_LIBRARY_PATH=folder, **variables)


@pytest.fixture(scope="session")
def plugin(ask_python: Any) -> Ask:
    """onnxruntime with OpenVINO's and WebGPU's plugin packages."""
    packages = "onnxruntime==1.32.0", "onnxruntime-ep-openvino==1.8.1", "onnxruntime-ep-webgpu==0.4.0"
    python = environment("plugins-1.32.0-1.8.1-0.4.0", *packages)
    return lambda *jobs, **variables: ask_python(python, jobs, **variables)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A GPT and a BERT in every form that a provider may be asked to run; the float ones hold both dialects."""
    folder = tmp_path_factory.mktemp("forms")
    models = {"gpt": tiny.gpt2(), "bert": tiny.bert("text-classification")}
    tokenizers = {"gpt": tiny.bpe(), "bert": tiny.wordpiece()}
    made = {}
    for name, model in models.items():
        checkpoint = tiny.save(model, folder / f"{name}.checkpoint", tokenizers[name])
        made[name] = export(checkpoint, folder / name, dialect="all", check=False)
        for recipe in ("int8", "fp16", "fp16-int8", "fp16-int4"):
            made[f"{name} {recipe}"] = quantize(made[name], folder / f"{name}-{recipe}", recipe=recipe)
        graphs = json.loads((made[name] / MANIFEST).read_text())["graphs"]
        for graph in graphs:
            graph["providers"] = ["cpu", "directml"] if graph["dialect"] == "fused" else ELSEWHERE
        if name == "bert":
            graphs[0]["providers"] = ["cpu", "cuda", "directml"]
        tiny.change_json(made[name] / MANIFEST, graphs=graphs)
    return made
