"""text-generation: how well a text is foretold, and how far the next tokens are those of the first model.

Texts are read in windows of the context that do not overlap, each anew, so that windows are examples of their own.
Letters: S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchless.cache import KVCache
from torchless.decoder import Decoder, chunks
from torchless.errors import InputError
from torchless.language_model import LanguageModel
from torchless.quantize.data import Example, sample
from torchless.quantize.intervals import Measure, linear, mean, ratio
from torchless.quantize.quality.alike import same_tokens
from torchless.quantize.quality.classification import KL, divergence
from torchless.quantize.quality.watch import Watch
from torchless.quantize.results import Metric
from torchless.sampling import check_numbers, log_softmax

Float = npt.NDArray[np.float32]

ROWS = 64  # logits at a time: 13 MB for a vocabulary of 50,257
PROMPTS, PROMPT, NEW = 32, 32, 32  # texts that are continued, tokens of each, tokens to add
PROMPTS_TOGETHER = 16

PERPLEXITY = Metric("perplexity", "perplexity", "lower")
NEXT_TOKEN = Metric("next_token_agreement", "same likeliest next token as the first", "higher", percent=True)
GREEDY = Metric("greedy_agreement", f"greedy tokens as the first's, of {NEW}", "higher")


@dataclass
class Sums:
    """Over a window's tokens: loss in nats, KL divergence from the first model, the same likeliest token."""

    loss: float = 0.0
    divergence: float = 0.0
    same: int = 0
    tokens: int = 0


def measure_language(
    models: Sequence[LanguageModel], examples: Sequence[Example], watch: Watch, limit: int | None = None
) -> list[list[Measure]]:
    """Each model's measures over at most `limit` windows. Raises InputError for models of unlike tokens."""
    context = min(model.context_length for model in models)
    windows = sample(cut(same_tokens(models, examples), context), limit)
    watch.notes.append(
        f"{len(windows):,} window{'s' * (len(windows) > 1)} of at most {context:,} tokens that do not overlap; "
        "each one's first is given."
    )
    prompts = [window[: min(PROMPT, context // 2)] for window in _even(windows, PROMPTS)]
    watch.begin(len(models) * (len(windows) + len(prompts)))
    decoders = [model.decoder for model in models]
    caches = [decoder.new_cache() for decoder in decoders]
    sums: list[list[Sums]] = [[] for _ in models]
    for window in windows:
        for found, one in zip(sums, compare(decoders, caches, window), strict=True):
            found.append(one)
        watch.step(len(models))
    new = min(NEW, context - max(map(len, prompts)))
    replies = [_continue(decoder, prompts, new, watch) for decoder in decoders]
    return [
        [perplexity(sums[number]), *(_closeness(sums[number], replies[0], replies[number]) if number else [])]
        for number in range(len(models))
    ]


def cut(documents: Sequence[list[int]], context: int) -> list[list[int]]:
    """Windows of at most `context` tokens, and of two at least: the first is given, the second foretold."""
    windows = [ids[start : start + context] for ids in documents for start in range(0, len(ids), context)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise InputError("the data has no text of two tokens, so there is none to foretell: give a longer text")
    return windows


def compare(decoders: Sequence[Decoder], caches: Sequence[KVCache], ids: list[int]) -> list[Sums]:
    """Each model's sums over ids [S], a few tokens at a time: all logits at once would be gigabytes."""
    sums = [Sums(tokens=len(ids) - 1) for _ in decoders]
    for cache in caches:
        cache.lengths[0] = 0
    for start, end in chunks(len(ids) - 1, ROWS):
        first: Float | None = None
        for decoder, cache, found in zip(decoders, caches, sums, strict=True):
            logits = decoder.extend(cache, ids[start:end], keep=range(end - start))
            check_numbers(logits)
            log_probs = log_softmax(logits)
            chosen = log_probs[np.arange(end - start), ids[start + 1 : end + 1]]
            found.loss -= float(chosen.sum(dtype=np.float64))
            if first is None:
                first = log_probs
            else:
                found.divergence += float(divergence(first, log_probs).sum())
                found.same += int((first.argmax(axis=1) == log_probs.argmax(axis=1)).sum())
    return sums


def perplexity(sums: Sequence[Sums]) -> Measure:
    """exp of the mean loss of all tokens."""
    parts = [(one.loss, one.tokens) for one in sums]
    return linear(PERPLEXITY, parts, lambda total: np.exp(ratio(total[:, 0], total[:, 1])))


def greedy(decoder: Decoder, prompts: Sequence[list[int]], new: int) -> npt.NDArray[np.int64]:
    """The likeliest token again and again, [prompts,new]; no token ends a text."""
    cache = decoder.new_cache(len(prompts))
    logits = np.stack([decoder.extend(cache, ids, row=row)[-1] for row, ids in enumerate(prompts)])
    tokens = np.zeros((len(prompts), new), np.int64)
    step = decoder.stepper(cache)
    for place in range(new):
        check_numbers(logits)
        tokens[:, place] = logits.argmax(axis=1)
        if place < new - 1:
            logits = step(tokens[:, place].tolist())
    return tokens


def shared_beginning(first: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Two of [N,T] -> [N]: tokens before the first difference."""
    result: npt.NDArray[np.int64] = np.logical_and.accumulate(first == other, axis=1).sum(axis=1)
    return result


def _closeness(sums: Sequence[Sums], first: npt.NDArray[np.int64], reply: npt.NDArray[np.int64]) -> list[Measure]:
    tokens = [one.tokens for one in sums]
    return [
        mean(NEXT_TOKEN, [one.same for one in sums], tokens),
        mean(KL, [one.divergence for one in sums], tokens),
        mean(GREEDY, shared_beginning(first, reply)),
    ]


def _continue(decoder: Decoder, prompts: Sequence[list[int]], new: int, watch: Watch) -> npt.NDArray[np.int64]:
    return np.concatenate([greedy(decoder, block, new) for block in watch.blocks(prompts, PROMPTS_TOGETHER)])


def _even(windows: Sequence[list[int]], count: int) -> list[list[int]]:
    """At most `count` of them, evenly spread."""
    places = np.linspace(0, len(windows) - 1, min(count, len(windows))).round().astype(int)
    return [windows[place] for place in places]
