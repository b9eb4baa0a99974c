"""From logits to the next token: pure functions on arrays, and the chain that a configuration makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless import penalties
from torchless.errors import GenerationError, InputError
from torchless.generation_config import CONSTRAINTS, GenerationConfig

# Settings that may leave no token, and those that leave one.
FORBIDDING = ("no_repeat_ngram_size", "bad_words_ids", "min_new_tokens", "logit_bias", *CONSTRAINTS)
FORCING = ("forced_bos_token_id", "forced_eos_token_id")
NEUTRAL = GenerationConfig()
BLOCK = 256  # weights that are summed together
# Of keys: e**-32 of the likeliest token's probability is nothing, and what divides must not be subnormal.
BINS, NARROWEST, WIDEST = 4096, np.float32(1e-6), np.float32(32)

Float = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
# logits [V], the ids of prompt and text so far [T], how many of them were added -> logits [V]
Filter = Callable[[Float, Ids, int], Float]


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


def keep_top_p(logits: Float, top_p: float, least: int = 1) -> Float:
    """[V] -> [V]: -inf outside the smallest set whose probability reaches top_p (Holtzman et al., 2020).

    0 < top_p < 1; the `least` likeliest tokens always stay.
    """
    probabilities = softmax(logits)
    # All that are rarer than a share of what is left out make up less than it, and so are left out.
    rarest = 0.5 * (1 - top_p) / logits.size if least == 1 else 0.0
    possible = np.flatnonzero(probabilities > rarest)
    inside = possible[_reaching(-logits[possible], probabilities[possible], top_p, least)]
    kept = np.full_like(logits, -np.inf)
    kept[inside] = logits[inside]
    return kept


def keep_min_p(logits: Float, min_p: float, least: int = 1) -> Float:
    """[V] -> [V]: -inf below min_p times the likeliest token's probability (Nguyen et al., 2024).

    The `least` likeliest tokens always stay.
    """
    weights = np.exp(logits - logits.max())  # probabilities over the largest one
    kept = np.where(weights < np.float32(min_p), np.float32(-np.inf), logits)
    if least > 1:
        best = np.argpartition(-logits, min(least, logits.size) - 1)[:least]
        kept[best] = logits[best]
    return kept


def keep_typical(logits: Float, typical_p: float, least: int = 1) -> Float:
    """[V] -> [V]: the tokens whose surprise is nearest the expected one, until typical_p is reached.

    Locally typical sampling (Meister et al., 2022); 0 < typical_p < 1. Ties with the last one stay, and `least`
    tokens at least.
    """
    finite, possible = _possible(logits)
    logs = log_softmax(possible)
    probabilities = np.exp(logs)
    away = np.abs(logs - logs.dot(probabilities))
    inside = finite[away <= away[_reaching(away, probabilities, typical_p, least)].max()]
    kept = np.full_like(logits, -np.inf)
    kept[inside] = logits[inside]
    return kept


def _reaching(keys: Float, probabilities: Float, share: float, least: int) -> Ids:
    """Indices of the lowest keys, of equals the lower index, whose probabilities reach the share; `least` at least.

    Without sorting a vocabulary of 50,000, which takes as long as half a token: bins of keys tell in which one the
    share is reached, and only that one is sorted.
    """
    lowest = keys.min()
    width = np.clip(keys.max() - lowest, NARROWEST, WIDEST)
    bins = np.minimum((keys - lowest) * ((BINS - 1) / width), BINS - 1).astype(np.int64)
    heights = np.cumsum(np.bincount(bins, probabilities, BINS))
    last = min(int(np.searchsorted(heights, share)), BINS - 1)
    edge = np.flatnonzero(bins == last)
    edge = edge[np.argsort(keys[edge], kind="stable")]
    before = np.cumsum(probabilities[edge], dtype=np.float64) - probabilities[edge]
    before += heights[last - 1] if last else 0.0
    inside = np.concatenate([np.flatnonzero(bins < last), edge[before < share]])
    return inside if len(inside) >= least else np.argsort(keys, kind="stable")[:least]


@dataclass(frozen=True)
class Guess:
    """A token that another model guessed, drawn from its probabilities float64 [V]; None: it was no draw."""

    token: int
    probabilities: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Sampler:
    """Chooses a token from logits [V] after the filters: the likeliest without a generator, else a draw.

    forbidding: the names of the settings that may leave no token, for the error that says so.
    """

    filters: tuple[Filter, ...] = ()
    generator: np.random.Generator | None = None
    forbidding: str = "the settings"

    def __call__(self, logits: Float, ids: Ids, added: int, guess: Guess | None = None) -> int:
        """With a guess that was drawn the choice has the same distribution, and is often the guess."""
        logits = self.filter(logits, ids, added)
        if self.generator is None:
            return int(np.argmax(logits))
        if guess is None or guess.probabilities is None:
            candidates, possible = _possible(logits)
            return int(candidates[draw(np.exp(possible - possible.max()), self.generator)])
        # Speculative sampling (Leviathan et al., 2023): take it with p / q, else draw from what p has above q.
        candidates, probabilities = spread(logits)
        chance = probabilities[candidates == guess.token].sum()  # 0 if it was filtered out
        if self.generator.random() * guess.probabilities[guess.token] < chance:
            return guess.token
        above = np.maximum(probabilities - guess.probabilities[candidates], 0)
        probabilities = above if above.any() else probabilities  # none: p is q but for rounding
        return int(candidates[draw(probabilities, self.generator)])

    def filter(self, logits: Float, ids: Ids, added: int) -> Float:
        """[V] -> [V]. GenerationError for logits that are not numbers, InputError where no token is left."""
        best = int(np.argmax(logits))  # NaN, if there is one
        if not np.isfinite(logits[best]):
            raise GenerationError("the model's logits are not numbers: the bundle is damaged, export it again")
        for keep in self.filters:
            logits = keep(logits, ids, added)
        if self.filters and logits.max() == -np.inf:
            raise InputError(f"{self.forbidding} leave no token to choose: loosen them")
        return logits


def spread(logits: Float) -> tuple[Ids, npt.NDArray[np.float64]]:
    """[V] -> the N tokens that are possible, and their probabilities [N]."""
    candidates, logits = _possible(logits)
    weights = np.exp(logits - logits.max())
    return candidates, weights / weights.sum(dtype=np.float64)


def _possible(logits: Float) -> tuple[Ids, Float]:
    """The tokens that no filter took out, and their logits."""
    if logits.min() > -np.inf:
        return np.arange(logits.size), logits
    candidates = np.flatnonzero(logits > -np.inf)
    return candidates, logits[candidates]


def draw(weights: npt.NDArray[np.floating[Any]], generator: np.random.Generator) -> int:
    """An index by the cumulative sum: one uniform number, however many there are. The sum need not be 1.

    Summed in blocks first: one long sum of a whole vocabulary takes four times as long.
    """
    heights = np.cumsum(np.add.reduceat(weights, range(0, len(weights), BLOCK), dtype=np.float64))
    height = generator.random() * heights[-1]
    block = int(np.searchsorted(heights[:-1], height, side="right"))
    inside = weights[block * BLOCK : (block + 1) * BLOCK].astype(np.float64)
    height -= heights[block - 1] if block else 0.0
    index = int(np.searchsorted(np.cumsum(inside), height, side="right"))
    if index == len(inside):  # rounded up
        return int(np.flatnonzero(weights[: (block + 1) * BLOCK])[-1])
    return block * BLOCK + index


def make_sampler(
    config: GenerationConfig, budget: int, sequence: int = 0, constraint: Filter | None = None
) -> Sampler:
    """The chain of a configuration, and a generator of its own if it draws; each sequence has another one."""
    seed = [config.seed, sequence] if sequence and config.seed is not None else config.seed
    generator = np.random.default_rng(seed) if config.samples else None
    filters = make_filters(config, budget, constraint=constraint)
    return Sampler(tuple(filters), generator, those_of(config, FORBIDDING))


def those_of(config: GenerationConfig, names: Sequence[str]) -> str:
    """Which of these settings are given, for an error."""
    return " and ".join(name for name in names if getattr(config, name) != getattr(NEUTRAL, name))


def make_filters(
    config: GenerationConfig, budget: int, least: int = 1, constraint: Filter | None = None
) -> list[Filter]:
    """The filters of a configuration, in transformers' order; a setting that changes nothing is left out.

    budget: how many tokens may be added; the last of them is forced_eos_token_id's. least: how many tokens a
    filter of a draw leaves at least (beams need more than one).
    """
    c, filters = config, list[Filter]()
    if c.logit_bias:
        filters.append(lambda logits, ids, added: penalties.add_bias(logits, c.logit_bias))
    if c.repetition_penalty != 1:
        filters.append(lambda logits, ids, added: penalties.penalize_repetition(logits, ids, c.repetition_penalty))
    if c.presence_penalty or c.frequency_penalty:
        filters.append(
            lambda logits, ids, added: penalties.penalize_counts(
                logits, ids[len(ids) - added :], c.presence_penalty, c.frequency_penalty
            )
        )
    if c.no_repeat_ngram_size:
        filters.append(
            lambda logits, ids, added: penalties.forbid_repeated_ngrams(logits, ids, c.no_repeat_ngram_size)
        )
    if words := [one for one in c.bad_words_ids if one[:-1] or one[0] not in c.eos_token_id]:  # the end may come
        filters.append(lambda logits, ids, added: penalties.forbid_sequences(logits, ids, words))
    if c.min_new_tokens and c.eos_token_id:
        ends = list(c.eos_token_id)
        filters.append(
            lambda logits, ids, added: penalties.forbid(logits, ends) if added < c.min_new_tokens else logits
        )
    for at, token in ((0, c.forced_bos_token_id), (budget - 1, c.forced_eos_token_id)):
        if token is not None:
            filters.append(_force_at(at, token))
    if constraint is not None:  # after all that changes a logit, before what leaves a part of them
        filters.append(constraint)
    if not c.samples:
        return filters
    if c.temperature != 1:
        filters.append(lambda logits, ids, added: divide_by_temperature(logits, c.temperature))
    if c.top_k:
        filters.append(lambda logits, ids, added: keep_top_k(logits, max(c.top_k, least)))
    if c.top_p < 1:
        filters.append(lambda logits, ids, added: keep_top_p(logits, c.top_p, least))
    if c.min_p:
        filters.append(lambda logits, ids, added: keep_min_p(logits, c.min_p, least))
    if c.typical_p < 1:
        filters.append(lambda logits, ids, added: keep_typical(logits, c.typical_p, least))
    return filters


def _force_at(at: int, token: int) -> Filter:
    return lambda logits, ids, added: penalties.force(logits, token) if added == at else logits
