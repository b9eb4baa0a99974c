"""Calibration whose figures serve several drafts of one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torchless.bundle import Bundle
from torchless.manifest import Graph
from torchless.quantize.calibrate import Calibration, Row, Span
from torchless.quantize.weights import Float

MOST = 1 << 29  # bytes of moments; what goes beyond is measured anew

Divided = tuple[str, bytes]  # a value of the float32 graph, and what a draft divides it by


@dataclass
class Known:
    """What was measured of values on the same rows."""

    magnitudes: dict[str, Float] = field(default_factory=dict)
    spans: dict[Divided, Span] = field(default_factory=dict)
    moments: dict[Divided, Float] = field(default_factory=dict)


class Remembered(Calibration):
    """A Calibration for one draft; what it measures stands in `known` for the next."""

    def __init__(self, bundle: Bundle, graph: Graph, rows: Sequence[Row], known: Known, *, text: bool) -> None:
        super().__init__(bundle, graph, rows, text=text)
        self._known = known

    def magnitudes(self, values: Sequence[str]) -> dict[str, Float]:
        known = self._known.magnitudes
        if missing := [value for value in values if value not in known]:
            known |= super().magnitudes(missing)
        return {value: known[value] for value in values}

    def spans(self, values: Sequence[str]) -> dict[str, Span]:
        known = self._known.spans
        keys = {value: self._key(value) for value in values}
        if missing := [value for value, key in keys.items() if key not in known]:
            known |= {keys[value]: span for value, span in super().spans(missing).items()}
        return {value: known[key] for value, key in keys.items()}

    def moments(self, values: Sequence[str]) -> dict[str, Float]:
        known = self._known.moments
        found = {value: known[key] for value in values if (key := self._key(value)) in known}
        if missing := [value for value in values if value not in found]:
            measured = super().moments(missing)
            found |= measured
            room = MOST - sum(array.nbytes for array in known.values())
            if sum(array.nbytes for array in measured.values()) <= room:
                known |= {self._key(value): array for value, array in measured.items()}
        return found

    def _key(self, value: str) -> Divided:
        inside, by = self._divided.get(value, (value, None))
        return inside, b"" if by is None else by.tobytes()
