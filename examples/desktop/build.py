"""Freezes the application into a folder that runs without Python: dist/torchless-desktop/.

pip install pyinstaller
python examples/desktop/build.py
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import PyInstaller.__main__
from worker import BERT, GPT

from torchless.bundle import read_bundle

HERE = Path(__file__).parent
NAME = "torchless-desktop"


def build(bundles: Path, out: Path) -> Path:
    """The folder `out/torchless-desktop`, made anew, with both bundles inside."""
    for name in (GPT, BERT):
        read_bundle(bundles / name, verify=True)  # what is shipped is whole
    with tempfile.TemporaryDirectory() as work:
        PyInstaller.__main__.run([
            str(HERE / "app.py"), "--name", NAME, "--windowed", "--noconfirm", "--log-level", "WARN",
            "--distpath", str(out), "--workpath", work, "--specpath", work,
            *(f"--add-data={(bundles / name).resolve()}:bundles/{name}" for name in (GPT, BERT)),
        ])  # fmt: skip
    made = out / NAME
    for unused in ("tzdata", "msgs", "demos"):  # of Tcl and Tk: clocks of the world and translated dialogs
        for folder in made.rglob(f"_t*_data/{unused}"):
            shutil.rmtree(folder)
    if sys.platform == "linux" and shutil.which("strip"):
        for library in made.rglob("libpython*.so*"):  # no other: strip breaks numpy's
            subprocess.run(["strip", "--strip-unneeded", library], check=True)
    return made


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--bundles", type=Path, default=HERE.parent / "out", help="the folder that holds both")
    arguments.add_argument("--out", type=Path, default=Path("dist"), help="where the application's folder goes")
    asked = arguments.parse_args()
    made = build(asked.bundles, asked.out)
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"{made}: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
