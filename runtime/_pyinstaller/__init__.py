"""How PyInstaller freezes torchless: it finds this folder by the entry point "pyinstaller40", with no option."""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    return [str(Path(__file__).parent)]
