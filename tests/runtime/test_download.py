"""Models from a hub: huggingface_hub's real client against a server on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny
from hub import COMMIT, Hub, serving

EXPORTS = Path(__file__).parent / "data" / "foreign"
SCRIPT = """
import json, pickle, sys
import torchless
options = json.loads(sys.argv[2])
try:
    model = torchless.load(sys.argv[1], **options)
    answer = model("The union")
    again = pickle.loads(pickle.dumps(model))("The union")
    print(json.dumps({"answer": repr(answer), "same": answer == again, "file": model.graph.file,
                      "path": str(model.bundle.path), "hub": "huggingface_hub" in sys.modules}))
except torchless.TorchlessError as error:
    print(json.dumps({"error": type(error).__name__, "said": str(error)}))
"""
Load = Callable[..., Any]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, bert_bundles: dict[str, Path]) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(bert_bundles["text-classification"], root / "org" / "bundle")
    (root / "org" / "bundle" / "README.md").write_text("# a model card")
    foreign = root / "org" / "foreign"
    shutil.copytree(EXPORTS / "bert-classifier", foreign)
    (foreign / "tokenizer.json").write_text(tiny.wordpiece().to_str(), encoding="utf-8")
    (foreign / "onnx").mkdir()
    graph = onnx.load(foreign / "model.onnx")
    (foreign / "model.onnx").unlink()
    for name in ("model.onnx", "model_fp16.onnx", "model_quantized.onnx"):
        graph.doc_string = name  # the hub's cache stores equal files once
        onnx.save(graph, foreign / "onnx" / name)
    (foreign / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (foreign / "model.safetensors").write_bytes(b"weights of torch")
    (root / "org" / "checkpoint").mkdir()
    (root / "org" / "checkpoint" / "config.json").write_text("{}")
    with serving(root) as server:
        yield server


@pytest.fixture
def load(hub: Hub, tmp_path: Path) -> Load:
    """torchless.load in a process of its own, whose home and hub are this test's."""

    def call(name: str, *, url: str | None = None, env: Any = (), **options: Any) -> Any:
        hub.requests.clear()
        home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": url or hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, name, json.dumps(options)],
            env={**os.environ, **home, **PATIENT, **dict(env)}, cwd=tmp_path, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return call


PATIENT = {"HF_HUB_ETAG_TIMEOUT": "60", "HF_HUB_DOWNLOAD_TIMEOUT": "60"}  # seconds
NOWHERE = "http://127.0.0.1:9"  # nothing listens there
OFFLINE = {"HF_HUB_OFFLINE": "1"}


def fetched(hub: Hub) -> set[str]:
    return {path.split("/resolve/")[1].partition("/")[2] for path in hub.requests if path.startswith("GET /org")}


def test_a_bundle_is_fetched_once_and_answers_without_a_network_afterwards(hub: Hub, load: Load) -> None:
    first = load("org/bundle", download=True)
    assert first["same"] and COMMIT in first["path"] and first["file"] == "model.onnx"
    files = set(json.loads((hub.root / "org" / "bundle" / "torchless.json").read_text())["files"])
    assert fetched(hub) == files | {"torchless.json"}  # and not the model card
    again = load("org/bundle", download=True)
    assert again == first and not fetched(hub)
    assert load("org/bundle", download=True, url=NOWHERE) == first
    assert load("org/bundle", download=True, url=NOWHERE, env=OFFLINE) == first
    assert not hub.requests
    assert load("org/bundle", download=True, revision="v1")["answer"] == first["answer"]
    assert load("org/bundle", download=True, verify=True)["answer"] == first["answer"]


def test_of_another_tools_folder_one_graph_is_fetched_and_no_weights_of_torch(hub: Hub, load: Load) -> None:
    first = load("org/foreign", download=True)
    assert first["file"] == "onnx/model.onnx" and first["same"]
    assert fetched(hub) == {"onnx/model.onnx", "config.json", "tokenizer.json"}
    other = load("org/foreign", download=True, file="model_quantized")
    assert other["file"] == "onnx/model_quantized.onnx" and fetched(hub) == {"onnx/model_quantized.onnx"}


def test_a_folder_is_a_folder_and_a_mistyped_one_never_goes_to_the_network(
    hub: Hub, load: Load, tmp_path: Path, bert_bundles: dict[str, Path]
) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "bundle").symlink_to(bert_bundles["text-classification"])
    for options in ({}, {"download": True}):
        found = load("org/bundle", **options)
        assert found["path"] == str(tmp_path / "org" / "bundle") and not found["hub"]
    for name, hint in (("org/bundel", True), ("./org/bundel", False), ("/org/bundel", False), ("a/b/c", False)):
        said = load(name)["said"]
        assert "is not a folder" in said and ("download=True" in said) is hint
    assert not hub.requests


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("org/nothing", {}, "the hub has no model org/nothing"),
        ("org/private", {}, "or it is private: check the name, or set HF_TOKEN"),
        ("org/gated", {}, "asks for its terms to be accepted"),
        ("org/bundle", {"revision": "v9"}, "has no revision 'v9'"),
        ("org/checkpoint", {}, "holds no ONNX graph .* `torchless export`"),
        ("org/foreign", {"file": "model_q4"}, "file='model_q4': org/foreign has onnx/model.onnx"),
        ("no name", {}, "'no name' is no model's name"),
        ("org/bundle", {"revision": ""}, "revision='': give"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_line(name: str, options: Any, said: str, load: Load) -> None:
    found = load(name, download=True, **options)
    assert re.search(said, found["said"]) and "\n" not in found["said"]


def test_without_a_network_and_a_cache_the_error_says_so(load: Load, hub: Hub) -> None:
    for env in ({}, OFFLINE):
        said = load("org/bundle", download=True, url=NOWHERE, env=env)["said"]
        assert "is not in the cache, and the hub is not to be reached" in said
    assert "belongs to download=True" in load("org/bundle", revision="v1")["said"]


def test_a_body_that_breaks_off_leaves_no_model_behind(load: Load, hub: Hub) -> None:
    hub.cut = ".data"
    try:
        found = load("org/bundle", download=True)
        assert "could not be downloaded" in found["said"]
    finally:
        hub.cut = ""
    assert load("org/bundle", download=True)["same"]


def test_the_command_downloads_too(hub: Hub, tmp_path: Path) -> None:
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url, **PATIENT}
    command = [sys.executable, "-m", "torchless.cli", "run", "org/bundle", "You won", "--download", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and json.loads(done.stdout)["label"] in ("ham", "spam", "unsure")
    assert done.stderr == ""
