"""Is this bundle whole, and does it compute here what it computed where it was made?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchless.bundle import read_bundle
from torchless.errors import BundleError
from torchless.probe import TOLERANCE, Probe, run_probe, sample


@dataclass(frozen=True)
class Verification:
    """The largest difference, by graph, between this machine's outputs and the recorded ones."""

    files: int
    errors: dict[str, float]
    tolerance: float
    against: str

    @property
    def ok(self) -> bool:
        return all(error <= self.tolerance for error in self.errors.values())


def verify(path: str | os.PathLike[str]) -> Verification:
    """Hash every file, then run each graph on the inputs of the manifest's parity record.

    Raises BundleError for a damaged bundle, or one that was exported without a check.
    """
    bundle = read_bundle(path, verify=True)
    parity: Any = bundle.manifest.parity
    if not parity:
        raise BundleError(f"{bundle.path} was exported without a check (check=False): nothing to repeat")
    probe = Probe.read(parity, bundle.manifest)
    errors: dict[str, float] = {}
    for graph in bundle.manifest.graphs:
        try:
            pairs = zip(sample(run_probe(bundle, graph, probe)), parity["values"], strict=True)
            errors[graph.file] = max(float(np.abs(np.subtract(a, b)).max(initial=0)) for a, b in pairs)
        except (KeyError, TypeError, ValueError):
            raise BundleError(f"{bundle.path}: the manifest's parity record is damaged: export it again") from None
    # On another processor float sums differ in the last bit, roundings then fall the other way, and each moves
    # an int8 output by far more: up to as far as it is from float32 anyway.
    lossy = bundle.manifest.recipe is not None
    allowed = TOLERANCE * max(1.0, float(parity.get("largest_output", 1.0)))
    allowed = max(allowed, float(parity.get("max_abs_error", 0.0))) if lossy else allowed
    return Verification(len(bundle.manifest.files), errors, allowed, str(parity.get("against", "")))
