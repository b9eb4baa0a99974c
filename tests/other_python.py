"""Virtual environments with another onnxruntime than the tests' own, kept between runs in a folder of the user."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchless-tests"
PATIENCE = 180  # seconds for pip: a slow line skips these tests, it does not hold up all others
LEAST = ("numpy", "tokenizers")


def python_with(*requirements: str) -> Path:
    """The interpreter of an environment that holds these packages, made where there is none.

    Skips the test off Linux on x86-64, where not all of them have wheels, and where pip cannot fetch them.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("the wheels are for Linux on x86-64")
    wanted = (*LEAST, *requirements)
    key = hashlib.sha256(repr((sys.version_info[:2], wanted)).encode()).hexdigest()[:12]
    made = CACHE / f"{requirements[0].partition('=')[0]}-{key}"
    if not (made / "bin" / "python").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=CACHE, prefix="making-"))
        try:
            subprocess.run([sys.executable, "-m", "venv", part], check=True, capture_output=True)
            command = [part / "bin" / "python", "-m", "pip", "install", "-q", *wanted]
            try:
                result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                pytest.skip(f"pip takes more than {PATIENCE} s for {' '.join(wanted)}")
            if result.returncode:
                pytest.skip(f"pip cannot install {' '.join(wanted)}: {result.stderr.strip().splitlines()[-1:]}")
            part.rename(made)  # scripts inside would still name the old folder; the interpreter does not mind
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return made / "bin" / "python"


def run_with(
    python: Path, script: Path, *arguments: str, tree: Path, timeout: float = 600, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script with the runtime of this checkout, which `tree` (an empty folder) makes importable."""
    if not (tree / "torchless").exists():
        (tree / "torchless").symlink_to(ROOT / "runtime")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    return subprocess.run(
        [python, script, *arguments], env=environment, capture_output=True, text=True, timeout=timeout
    )
