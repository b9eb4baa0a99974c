"""The soak of the server: it ends well on a server that is sound, and is told of one that is not."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("serve_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_script"] = module
    spec.loader.exec_module(module)
    return module


def test_a_few_seconds_lose_nothing_and_are_written_down(
    script: Any, long_gpt: Any, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soak.json"
    monkeypatch.setattr(script, "GROWTH", 100.0)  # that of a start
    short = ["--minutes", "0.04", "--seed", "2"]  # of this seed each kind is some client's first
    monkeypatch.setattr(sys, "argv", ["serve", str(long_gpt.bundle.path), *short, "--json", str(out)])
    assert script.main() == 0, capsys.readouterr()
    told = capsys.readouterr().out
    assert " 0 lost, 0 differ" in told and "p95" in told and "exit code 0" in told
    found = json.loads(out.read_text(encoding="utf-8"))["together"]
    assert set(found["kinds"]) == {"read", "stream", "cancel", "cut"} and min(found["memory"]) > 30


def test_answers_that_differ_and_requests_that_are_lost_are_counted(script: Any, running: Any) -> None:
    client = script.Client(running.url, "long")
    wrong = dict.fromkeys(script.PROMPTS, "something else")
    report = script.soak([client], 0.5, wrong, wrong, lambda: 0.0)
    assert report.differ > 0 and not report.lost
    away = script.Client("http://127.0.0.1:9", "long")
    assert script.soak([away], 0.3, wrong, wrong, lambda: 0.0).lost
