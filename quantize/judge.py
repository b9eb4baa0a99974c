"""How far the answers of a changed graph are from those of the float32 one, and what that costs on real text.

P places of a row that are looked at, L labels or the vocabulary, S tokens, D the length of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.bundle import Bundle
from torchless.errors import QuantizationError
from torchless.exactness import signed_int8_saturates
from torchless.manifest import Graph
from torchless.quantize.calibrate import feed, open_model
from torchless.quantize.quality.classification import divergence
from torchless.quantize.questions import Question, questions
from torchless.quantize.weights import TINY
from torchless.sampling import log_softmax
from torchless.similarity import unit
from torchless.tasks import TASKS

Float = npt.NDArray[np.float32]

# KL divergence of all that is a choice, in nats a choice; vectors by the angle; any other number by its square.
METRICS = {
    "kl": "KL divergence from float32, nats",
    "cosine": "mean cosine error",
    "squared": "squared error, relative",
}
CHOICES = (
    *("text-generation", "fill-mask", "text-classification", "zero-shot-classification"),
    *("next-sentence-prediction", "token-classification", "question-answering"),
)


class Judge:
    """Asks a graph the questions that the float32 one has answered."""

    def __init__(self, bundle: Bundle, graph: Graph, asked: Sequence[Question]) -> None:
        self.bundle, self.questions = bundle, asked
        self.metric = metric_of(bundle)
        self._folder = bundle.file(graph.file).parent
        self._first = list(self._answers(bundle.file(graph.file).read_bytes(), precise=False))
        self._loss = self._cost(self._first)

    @classmethod
    def on(cls, bundle: Bundle, graph: Graph, examples: Any) -> Judge:
        """examples: see questions."""
        return cls(bundle, graph, questions(bundle, graph, examples))

    def __call__(self, model: bytes, *, signed_int8: bool) -> tuple[float, float | None]:
        """The error in `metric`, and the rise of cross-entropy in nats a choice; None where nobody knows the right.

        model: the graph, whose old weights stay in the bundle's file. signed_int8: whether it has such weights.
        """
        found = list(self._answers(model, precise=signed_int8 and signed_int8_saturates()))
        return self._error(found), None if self._loss is None else float(self._cost(found) - self._loss)

    def _answers(self, model: bytes, *, precise: bool) -> Iterator[Float]:
        """For each question log-probabilities [P,L], or a vector."""
        session = open_model(model, self._folder, precise=precise)
        outputs = list(TASKS[self.bundle.manifest.task].outputs)
        for one in self.questions:
            feeds = feed(self.bundle, session, one.row, logits=True)
            places = one.places or (len(one.row.input_ids) - 1,)  # a decoder with a head answers at the last
            if "logits_positions" in feeds:
                feeds["logits_positions"] = np.array([places])
            found = np.stack([array[0] for array in session.run(outputs, feeds)])  # [outputs,..]
            if not np.isfinite(found).all():
                raise QuantizationError(
                    f"{self.bundle.path} gives NaN or infinity for a text of {len(one.row.input_ids)} tokens: "
                    "export it again from a sound checkpoint"
                )
            if one.places and "logits_positions" not in feeds:
                found = found[:, list(one.places)]
            yield self._read(found.reshape(-1, found.shape[-1]) if found.ndim > 1 else found)

    def _read(self, found: Float) -> Float:
        if self.metric == "cosine":
            return unit(found)
        if self.metric == "squared":
            return found
        if self.bundle.manifest.problem_type == "multi_label_classification" or found.shape[-1] == 1:
            each = found.reshape(-1)
            return np.stack([-np.logaddexp(0, each), -np.logaddexp(0, -each)], axis=-1)  # absent, present
        return log_softmax(found)

    def _error(self, found: Sequence[Float]) -> float:
        pairs = list(zip(self._first, found, strict=True))
        if self.metric == "squared":
            squares = [(np.square(one - other).sum(), np.square(one).sum()) for one, other in pairs]
            above, below = (float(sum(column)) for column in zip(*squares, strict=True))
            return above / max(below, TINY)
        if self.metric == "cosine":
            return float(np.mean([((one - other).astype(np.float64) ** 2).sum() / 2 for one, other in pairs]))
        return float(np.concatenate([divergence(one, other) for one, other in pairs]).mean())

    def _cost(self, found: Sequence[Float]) -> Any:
        """Cross-entropy a choice, or None."""
        if self.metric != "kl" or any(one.truth is None for one in self.questions):
            return None
        chosen = [
            log_probs[np.arange(len(log_probs)), one.truth]
            for log_probs, one in zip(found, self.questions, strict=True)
        ]
        return -np.concatenate(chosen).mean(dtype=np.float64)


def metric_of(bundle: Bundle) -> str:
    """A key of METRICS."""
    manifest = bundle.manifest
    if manifest.task == "feature-extraction":
        return "cosine"
    return "kl" if manifest.task in CHOICES and manifest.problem_type != "regression" else "squared"
