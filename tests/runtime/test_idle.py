"""A loaded model that nobody asks uses no CPU, also while a stream is held open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from torchless.export import export

CHECKPOINT = Path(__file__).parents[2] / "examples" / "checkpoints" / "sotu-gpt"  # large enough for two threads
IDLE = """
import sys, time, torchless
model = torchless.load(sys.argv[1], threads=2)

def idle():
    before = time.process_time()  # of all threads
    time.sleep(1)
    return time.process_time() - before

def least(work):
    return min((work(), idle())[1] for _ in range(3))  # something else may be at work in one of the seconds

print(least(lambda: model("The state of the Union", max_new_tokens=20)))
stream = model.stream("The state of the Union", max_new_tokens=200)
print(least(lambda: [next(stream) for _ in range(5)]))
print(len(list(stream)) > 20)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(CHECKPOINT, tmp_path_factory.mktemp("idle") / "bundle", check=False)


def test_a_loaded_model_and_a_stream_that_waits_use_no_cpu(bundle: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IDLE, str(bundle)], capture_output=True, text=True, timeout=120)
    loaded, waiting, went_on = done.stdout.split()
    # Threads that spin take 0.013 to 0.03 of the second in which they wait for the next call, ours 0.0001.
    assert float(loaded) < 0.01 and float(waiting) < 0.01, done.stdout
    assert went_on == "True", done.stderr
