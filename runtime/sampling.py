"""From logits to the next token: pure functions on arrays, and the chain that a configuration makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchless.errors import GenerationError

Float = npt.NDArray[np.float32]
Filter = Callable[[Float], Float]


def log_softmax(logits: Float) -> Float:
    """[..,V] -> [..,V], over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Float = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def softmax(logits: Float) -> Float:
    """[..,V] -> [..,V], over the last axis; -inf becomes 0."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Float = weights / weights.sum(axis=-1, keepdims=True)
    return result


def check_numbers(outputs: Float, name: str = "logits") -> None:
    """Raise GenerationError for NaN or infinity."""
    if not np.isfinite(outputs).all():
        raise GenerationError(f"the model's {name} are not numbers: the bundle is damaged, export it again")


def divide_by_temperature(logits: Float, temperature: float) -> Float:
    """[V] -> [V]: flatter above 1, sharper below (temperature > 0)."""
    result: Float = logits / np.float32(temperature)
    return result


def keep_top_k(logits: Float, top_k: int) -> Float:
    """[V] -> [V]: -inf for all that is smaller than the k-th largest; its equals stay, as in transformers."""
    if top_k >= logits.size:
        return logits
    least = np.partition(logits, -top_k)[-top_k]
    return np.where(logits < least, np.float32(-np.inf), logits)


def keep_top_p(logits: Float, top_p: float) -> Float:
    """[V] -> [V]: -inf outside the smallest set whose probability reaches top_p (Holtzman et al., 2020).

    0 < top_p < 1; the likeliest token always stays.
    """
    finite = np.flatnonzero(logits > -np.inf)
    order = finite[np.argsort(-logits[finite], kind="stable")]  # likeliest first; of equals the lower id
    probabilities = softmax(logits[order])
    ahead = np.cumsum(probabilities) - probabilities  # what stands before each token: 0 for the first
    kept = np.full_like(logits, -np.inf)
    inside = order[ahead < top_p]
    kept[inside] = logits[inside]
    return kept


@dataclass(frozen=True)
class Sampler:
    """Chooses a token from logits [V]: the likeliest without a generator, else a draw after the filters."""

    filters: tuple[Filter, ...] = ()
    generator: np.random.Generator | None = None

    def __call__(self, logits: Float) -> int:
        best = int(np.argmax(logits))  # NaN, if there is one
        if not np.isfinite(logits[best]):
            raise GenerationError("the model's logits are not numbers: the bundle is damaged, export it again")
        if self.generator is None:
            return best
        for keep in self.filters:
            logits = keep(logits)
        # A draw by the cumulative sum: one uniform number a token, whatever the vocabulary.
        candidates = np.flatnonzero(logits > -np.inf)
        heights = np.cumsum(softmax(logits[candidates].astype(np.float64)))
        index = int(np.searchsorted(heights, self.generator.random() * heights[-1], side="right"))
        return int(candidates[min(index, len(candidates) - 1)])


def make_sampler(*, temperature: float, top_k: int, top_p: float, seed: int | None, sample: bool) -> Sampler:
    """The chain for settings that GenerationConfig has checked; a setting that changes nothing is left out."""
    if not sample:
        return Sampler()
    filters: list[Filter] = []
    if temperature != 1:
        filters.append(lambda logits: divide_by_temperature(logits, temperature))
    if top_k:
        filters.append(lambda logits: keep_top_k(logits, top_k))
    if top_p < 1:
        filters.append(lambda logits: keep_top_p(logits, top_p))
    return Sampler(tuple(filters), np.random.default_rng(seed))
