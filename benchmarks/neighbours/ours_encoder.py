"""torchless. It is converted in the environment that runs the benchmark, which has torchless[export,quantize]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import torchless
from torchless.encoder import Encoder


def convert(source: str, out: str, form: str) -> None:
    """A checkpoint in float32, or one of its bundles by a recipe."""
    from torchless.export import export
    from torchless.quantize import quantize

    if form == "fp32":
        export(source, out, check=False)
    else:
        quantize(source, out, recipe=form)


class Model:
    def __init__(self, folder: str, threads: int) -> None:
        model = torchless.load(Path(folder), threads=threads)
        self._encoder = Encoder(model.session, model.bundle, "last_hidden_state")

    def hidden(self, ids: Any) -> Any:
        return self._encoder.run(ids, np.ones_like(ids), np.zeros_like(ids))
