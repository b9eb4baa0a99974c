"""examples/desktop on a screen of its own (Xvfb): what is typed is completed and judged, and nothing waits."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from torchless.export import export
from torchless.quantize import quantize

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "desktop"
DRIVE = Path(__file__).with_name("drive.py")
HAM = ROOT / "examples" / "data" / "heldout-mails.jsonl"

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("_tkinter") is None, reason="this Python has no tkinter"),
    pytest.mark.skipif(shutil.which("Xvfb") is None, reason="Xvfb is not installed"),
]


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """A screen that nobody looks at. It takes a free number by itself and tells which."""
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "900x640x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as told:
        number = told.readline().strip()
    if not number:
        pytest.skip("Xvfb does not start")
    yield f":{number}"
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of examples/first_minute.py that the application uses."""
    out = tmp_path_factory.mktemp("bundles")
    for name in ("sotu-gpt", "spam-bert"):
        made = export(ROOT / "examples" / "checkpoints" / name, out / name)
        quantize(made, out / f"{name}-int8", recipe="int8")
    return out


def environment(display: str) -> dict[str, str]:
    return {**os.environ, "DISPLAY": display, "PYTHONPATH": str(EXAMPLE), "PYTHONDONTWRITEBYTECODE": "1"}


Drive = Callable[..., dict[str, Any]]


@pytest.fixture
def drive(display: str, bundles: Path) -> Drive:
    def run(case: str, folder: Path = bundles, given: str = "") -> dict[str, Any]:
        result = subprocess.run(
            [sys.executable, DRIVE, folder, case], env=environment(display), input=given, capture_output=True,
            text=True, timeout=240,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        seen: dict[str, Any] = json.loads(result.stdout)
        return seen

    return run


def test_a_key_takes_the_completion_away_and_stops_the_model_that_writes_it(drive: Drive) -> None:
    seen = drive("cancelled")
    assert seen["typed"] == "The people of the United States" and seen["ghost"].strip()
    assert seen["gone"] == "" and seen["typed_on"] == "The people of the United States "
    assert seen["reason"] == "cancelled" and 0 < seen["tokens"] < 20
    assert seen["new"] == seen["old"] + 1


def test_tab_takes_the_completion_escape_drops_it_and_undo_takes_it_back(drive: Drive) -> None:
    seen = drive("taken")
    assert seen["after"] == "The people of the United States" + seen["ghost"]
    assert seen["dropped"] == "" and seen["kept"] == seen["after"]
    assert seen["undone"] == seen["after"].removesuffix(seen["ghost"])


def test_spam_is_flagged_and_a_mail_is_not(drive: Drive) -> None:
    mails = [json.loads(line) for line in HAM.read_text(encoding="utf-8").splitlines()]
    ham = next(mail["text"] for mail in mails if mail["label"] == 0)
    assert drive("flagged", given=ham)["ham"] == "fine"


def test_the_window_goes_on_while_the_models_work(drive: Drive) -> None:
    """One that waited for its completions would not come to the end of this."""
    seen = drive("responsive")
    assert seen["typed"].endswith("of the Congress and") and seen["requests"] == len(seen["typed"])
    assert seen["seen"][0] == ""


def test_closing_the_window_ends_the_thread_in_the_middle_of_a_text(drive: Drive) -> None:
    seen = drive("closed")
    assert seen["reason"] == "cancelled" and 0 < seen["tokens"] < 20
    assert not seen["alive"] and seen["threads"] == 1


def test_missing_and_damaged_bundles_are_told_in_the_window(drive: Drive, bundles: Path, tmp_path: Path) -> None:
    seen = drive("problems", tmp_path)
    assert "sotu-gpt-int8" in seen["shown"] and "spam-bert-int8" in seen["shown"] and seen["visible"]
    assert seen["typed"] == "My fellow citizens" and seen["ghost"] == seen["flag"] == ""

    for name in ("sotu-gpt-int8", "spam-bert-int8"):
        shutil.copytree(bundles / name, tmp_path / name)
    weights = tmp_path / "sotu-gpt-int8" / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    seen = drive("problems", tmp_path)
    assert "model.onnx.data" in seen["shown"] and "Traceback" not in seen["shown"]
    assert seen["ghost"] == "" and seen["flag"]  # the other model works


@pytest.mark.skipif(shutil.which("xdotool") is None, reason="xdotool is not installed")
def test_the_application_completes_what_a_keyboard_types_and_ends_by_one(display: str, bundles: Path) -> None:
    command = [sys.executable, EXAMPLE / "app.py", "--bundles", bundles, "--length", "100", "--verbose"]
    with subprocess.Popen(command, env=environment(display), stderr=subprocess.PIPE, text=True) as app:
        assert app.stderr is not None
        watch = threading.Timer(240, app.kill)
        watch.start()

        def keys(*arguments: str) -> None:
            subprocess.run(["xdotool", *arguments], env=environment(display), check=True, timeout=60)

        keys("search", "--sync", "--onlyvisible", "--class", "Torchless", "windowfocus")
        keys("type", "--delay", "30", "The people of the United States")
        told = []
        for line in app.stderr:
            told.append(line)
            if "length after 100 tokens" in line:
                break
        keys("type", " and")
        keys("key", "ctrl+q")
        told.extend(app.stderr)
        watch.cancel()
    assert app.returncode == 0, told
    assert all(line.startswith("desktop: request ") for line in told) and "length after 100 tokens" in "".join(told)
