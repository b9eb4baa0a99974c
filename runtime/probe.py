"""The same few inputs through a graph, wherever it runs: what export, quantize and verify compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.bundle import Bundle
from torchless.decoder import Decoder
from torchless.encoder import Encoder
from torchless.errors import BundleError
from torchless.manifest import EXPORT_AGAIN, Graph, Manifest
from torchless.providers import Asked, choose_provider
from torchless.session import open_session
from torchless.tasks import TASKS

Float = npt.NDArray[np.float32]

LENGTHS = (1, 5, 16, 48)  # one token alone, rows of unlike length, more than a kernel's block
VALUES = 16  # of each row, kept in the manifest: enough to tell a graph that computes something else
TOLERANCE = 1e-4  # of the largest output, or of 1


@dataclass(frozen=True)
class Probe:
    """Rows of token ids, and of segment ids for an encoder."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]

    @classmethod
    def make(cls, manifest: Manifest, segments: int = 1, seed: int = 0) -> Probe:
        """Random ids; the second half of each row is of segment 1, if the model has more than one."""
        generator = np.random.default_rng(seed)
        lengths = [min(length, manifest.context_length) for length in LENGTHS]
        ids = [generator.integers(0, manifest.vocab_size, length).tolist() for length in lengths]
        types = [[int(segments > 1 and 2 * i >= length) for i in range(length)] for length in lengths]
        return cls(ids, types)

    @classmethod
    def read(cls, record: Mapping[str, Any], manifest: Manifest) -> Probe:
        """The probe that a manifest's parity record holds. Raises BundleError for one that cannot be run."""
        try:
            probe = cls(record["input_ids"], record["token_type_ids"])
            pairs = zip(probe.input_ids, probe.token_type_ids, strict=True)
            sound = all(
                len(ids) == len(types) and 0 < len(ids) <= manifest.context_length
                and all(isinstance(i, int) and 0 <= i < manifest.vocab_size for i in ids)
                and all(isinstance(t, int) and 0 <= t <= 1 for t in types)
                for ids, types in pairs
            )  # fmt: skip
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise BundleError(f"the manifest's parity record has no sound inputs: {EXPORT_AGAIN}")
        return probe


def run_probe(
    bundle: Bundle, graph: Graph, probe: Probe, *, provider: Asked = "cpu", optimize: bool = True
) -> list[Float]:
    """The graph's output for each row: logits [S,V] of a decoder, an encoder's [S,..] or [..] for its row.

    A decoder reads half of each row at once and the rest token by token, all rows together; an encoder gets
    the rows as one padded batch. So every path that a user's text takes is in the comparison.
    """
    session = open_session(bundle, graph, choose_provider(provider), optimize=optimize)
    if bundle.manifest.cache is not None:
        return _run_decoder(Decoder(session, bundle), probe)
    encoder = Encoder(session, bundle, *TASKS[bundle.manifest.task].outputs)
    longest = max(map(len, probe.input_ids))
    ids = np.zeros((len(probe.input_ids), longest), np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for row, (tokens, segments) in enumerate(zip(probe.input_ids, probe.token_type_ids, strict=True)):
        ids[row, : len(tokens)], types[row, : len(tokens)], mask[row, : len(tokens)] = tokens, segments, 1
    result = encoder.run(ids, mask, types)
    if result.ndim == 2:
        return list(result)
    return [row[: len(tokens)] for row, tokens in zip(result, probe.input_ids, strict=True)]


def _run_decoder(decoder: Decoder, probe: Probe) -> list[Float]:
    rows = probe.input_ids
    cache = decoder.new_cache(len(rows))
    heads = [max(1, len(row) // 2) for row in rows]
    logits = [
        list(decoder.extend(cache, row[:head], row=i, keep=range(head)))
        for i, (row, head) in enumerate(zip(rows, heads, strict=True))
    ]
    step = decoder.stepper(cache)
    for ahead in range(max(len(row) - head for row, head in zip(rows, heads, strict=True))):
        if cache.lengths.max() >= decoder.context_length:
            break  # a row that was complete has been fed on: only tiny contexts come here
        tokens = [row[min(head + ahead, len(row) - 1)] for row, head in zip(rows, heads, strict=True)]
        for i, answer in enumerate(step(tokens)):
            logits[i].append(answer.copy())
    return [np.stack(row[: len(ids)]) for row, ids in zip(logits, rows, strict=True)]


def max_error(ours: Sequence[Float], reference: Sequence[Float]) -> float:
    """The largest absolute difference; infinity where one of them is not a number, or has another shape."""
    worst = 0.0
    for one, other in zip(ours, reference, strict=True):
        if one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
            return float("inf")
        worst = max(worst, float(np.abs(one - other).max(initial=0)))
    return worst


def largest(outputs: Sequence[Float]) -> float:
    return max(float(np.abs(row).max(initial=0)) for row in outputs)


def sample(outputs: Sequence[Float]) -> list[list[float]]:
    """A few values of each row, evenly spread."""
    return [
        [float(row.flat[i]) for i in np.linspace(0, row.size - 1, min(VALUES, row.size)).astype(int)]
        for row in outputs
    ]


def record(against: str, probe: Probe, ours: Sequence[Float], error: float) -> dict[str, Any]:
    """The manifest's parity record: against what, on which inputs, with what error, and what came out."""
    return {
        "against": against,
        "max_abs_error": error,
        "largest_output": largest(ours),
        "input_ids": probe.input_ids,
        "token_type_ids": probe.token_type_ids,
        "values": sample(ours),
    }
