"""How far a bundle's answers are from those of the bundle that it was made from."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchless.bundle import Bundle
from torchless.errors import QuantizationError
from torchless.manifest import Graph
from torchless.probe import Probe, max_error, record, run_probe


def compare(quantized: Bundle, source: Bundle, graph: Graph) -> dict[str, Any]:
    """The quantized bundle's parity record: its distance from `graph` of the source, on the source's inputs.

    Raises QuantizationError where an output of either is not finite.
    """
    manifest = source.manifest
    probe = Probe.read(manifest.parity, manifest) if manifest.parity else Probe.make(manifest)
    before = run_probe(source, graph, probe)
    after = run_probe(quantized, quantized.manifest.graphs[0], probe)
    error = max_error(after, before)
    differences = [np.abs(one - other).ravel() for one, other in zip(before, after, strict=True)]
    mean = float(np.concatenate(differences).mean())
    if not np.isfinite(error + mean):
        sound = all(np.isfinite(row).all() for row in before)
        remedy = "take another recipe" if sound else "export it again from a sound checkpoint"
        when = f"as {quantized.manifest.graphs[0].precision}, not as float32" if sound else "as float32"
        raise QuantizationError(f"{source.path} gives NaN or infinity for random tokens {when}: {remedy}")
    against = f"{graph.file} ({graph.precision}) of the bundle that it was made from"
    return record(against, probe, after, error) | {"mean_abs_error": mean}
