"""Is this bundle whole, and does it compute here what it computed where it was made?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchless.bundle import read_bundle
from torchless.errors import BundleError
from torchless.probe import TOLERANCE, Probe, max_error, run_probe, sample


@dataclass(frozen=True)
class Verification:
    """By graph: how far this machine's outputs are from the recorded ones at most, and what is allowed."""

    files: int
    errors: dict[str, float]
    allowed: dict[str, float]
    against: str

    @property
    def ok(self) -> bool:
        return all(error <= self.allowed[file] for file, error in self.errors.items())


def tolerance(parity: Mapping[str, Any], *, lossy: bool) -> float:
    """How far outputs may be from a parity record's: float32's noise, or a quantized bundle's own distance."""
    allowed = TOLERANCE * max(1.0, float(parity.get("largest_output", 1.0)))
    return max(allowed, float(parity.get("max_abs_error", 0.0))) if lossy else allowed


def verify(path: str | os.PathLike[str]) -> Verification:
    """Hash every file, then run each graph that the CPU can run on the inputs of its parity record.

    Raises BundleError for a damaged bundle, or one that was exported without a check.
    """
    bundle = read_bundle(path, verify=True)
    manifest = bundle.manifest
    errors: dict[str, float] = {}
    allowed: dict[str, float] = {}
    against = ""
    for graph in manifest.graphs:
        parity: Any = graph.parity or manifest.parity
        if not parity:
            raise BundleError(f"{bundle.path} was exported without a check (check=False): nothing to repeat")
        against = against or str(parity.get("against", ""))
        probe = Probe.read(parity, manifest)
        # On another processor float sums differ in the last bit, roundings then fall the other way, and each moves
        # an int8 output by far more: up to as far as it is from float32 anyway.
        lossy = (graph.recipe or manifest.recipe) is not None and graph.precision != "fp32"
        try:
            here = [np.array(row, np.float32) for row in sample(run_probe(bundle, graph, probe))]
            errors[graph.file] = max_error(here, [np.array(row, np.float32) for row in parity["values"]])
            allowed[graph.file] = tolerance(parity, lossy=lossy)
        except (KeyError, TypeError, ValueError):
            raise BundleError(f"{bundle.path}: the manifest's parity record is damaged: export it again") from None
    return Verification(len(manifest.files), errors, allowed, against)
