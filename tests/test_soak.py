"""benchmarks/soak.py: what comes of thousands of generations in several threads, here in a quick form."""

from __future__ import annotations

import importlib.util
import json
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchless
from torchless.cache import KVCache
from torchless.export import export
from torchless.quantize import quantize

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "soak.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def script() -> Any:
    spec: Any = importlib.util.spec_from_file_location("soak", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(bundle: Path, *options: Any) -> tuple[int, dict[str, Any]]:
    """Exit code and figures of a process of its own, whose memory is its own."""
    figures = bundle.with_name(f"{bundle.name}.json")
    command = [sys.executable, SCRIPT, bundle, "--json", figures, *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert figures.exists(), done.stderr[-2000:]
    return done.returncode, json.loads(figures.read_text())


def test_two_hundred_generations_in_four_threads_are_as_alone_and_leave_nothing(gpt_bundle: Path) -> None:
    code, found = run(gpt_bundle, "--generations", 200)
    assert (code, found["ok"], found["wrong"]) == (0, True, []), found
    assert sum(found["kinds"].values()) == 200 and len(found["memory"]) == 2
    assert {"cancelled", "closed", "list", "stream", "slide", "state"} <= found["kinds"].keys()


def test_a_text_that_differs_is_told(gpt: torchless.TextGeneration, script: Any, monkeypatch: Any) -> None:
    ask = script.Job.ask

    def forgetful(job: Any, model: Any, seen: list[Any] = []) -> Any:  # noqa: B006  (counts across calls)
        seen.append(job)
        return ask(job, model) if len(seen) <= script.REFERENCES else ask(job, model)[:-1]

    monkeypatch.setattr(script.Job, "ask", forgetful)
    report = script.soak(gpt, 20, 2, 0.2)
    assert report.wrong and not report.ok


def test_memory_that_grows_is_told(gpt: torchless.TextGeneration, script: Any, monkeypatch: Any) -> None:
    left, ask = list[mmap.mmap](), script.Job.ask

    def leak(job: Any, model: Any) -> Any:
        left.append(mmap.mmap(-1, 500_000))  # from the system: the heap may have room that earlier tests left
        left[-1].write(b"x" * 500_000)
        return ask(job, model)

    monkeypatch.setattr(script.Job, "ask", leak)
    report = script.soak(gpt, 200, 2, 0.0)
    assert report.growth > script.GROWTH and not report.ok


def test_the_memory_of_a_cache_goes_back_to_the_system_with_it(script: Any) -> None:
    def kept() -> float:
        """Megabytes that a cache leaves behind."""
        np.empty(30 << 20, np.uint8)  # glibc now keeps up to 60 MB of what is freed
        before = script.resident()
        cache = KVCache(layers=4, rows=4, heads=4, head_size=64, limit=256, joined=4)
        cache.reserve(256)
        cache.lengths[:] = 256
        for row in range(4):
            cache.filled(row)[:] = 1.0
        assert script.resident() - before > 4  # it has 8.4 MB, of which the system may have taken some
        del cache
        return abs(script.resident() - before)

    assert any(kept() < 1 for _ in range(5))  # the system may take or give other pages meanwhile


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [None, "int8"])
def test_ten_thousand_generations_end_with_the_memory_of_the_first_hundred(recipe: Any, tmp_path: Path) -> None:
    bundle = export(ROOT / "examples" / "checkpoints" / "sotu-gpt", tmp_path / "fp32", check=False)
    if recipe is not None:
        bundle = quantize(bundle, tmp_path / recipe, recipe=recipe)
    code, found = run(bundle)
    assert (code, found["wrong"]) == (0, []), (found["memory"][0], found["memory"][-1])
