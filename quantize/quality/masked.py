"""fill-mask: how well hidden tokens are guessed, and how far the guesses are the first model's. V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from torchless.batching import Batching
from torchless.errors import InputError
from torchless.quantize.data import SEED, Example
from torchless.quantize.intervals import Measure, mean
from torchless.quantize.quality.alike import same_tokens
from torchless.quantize.quality.classification import KL, divergence
from torchless.quantize.quality.watch import Watch
from torchless.quantize.results import Metric
from torchless.sampling import check_numbers, log_softmax
from torchless.tasks.entities import content
from torchless.tasks.fill_mask import FillMask, Masked

Float = npt.NDArray[np.float32]

SHARE = 0.15  # of the tokens that are hidden, as in BERT's training, but always by the mask token

LOSS = Metric("mask_loss", "loss of masked tokens, nats", "lower")
ACCURACY = Metric("mask_accuracy", "masked tokens guessed right", "higher", percent=True)
AGREEMENT = Metric("mask_agreement", "same guess as the first", "higher", percent=True)


def measure_masked(models: Sequence[FillMask], examples: Sequence[Example], watch: Watch) -> list[list[Measure]]:
    """Each model's measures. Raises InputError for models of unlike tokens, and data without any."""
    first = models[0]
    same_tokens(models, examples)
    watch.begin(len(models) * len(examples))
    generator = np.random.default_rng(SEED)
    sums: list[list[list[float]]] = [[] for _ in models]
    masks = []
    for example in examples:
        hidden, truth = hide(first, example, generator, watch)
        if truth:
            masks.append(len(truth))
            before: Float | None = None
            for found, model in zip(sums, models, strict=True):
                log_probs = fill(model, hidden)
                found.append(_sums(log_probs, truth, log_probs if before is None else before))
                before = log_probs if before is None else before
        watch.step(len(models))
    if not masks:
        raise InputError("the data has no token that could be masked: give longer texts")
    watch.tell_cut(first, examples)
    return [_measures(np.array(found), masks, closeness=number > 0) for number, found in enumerate(sums)]


def hide(
    model: FillMask, example: Example, generator: np.random.Generator, watch: Watch
) -> tuple[Masked, list[int]]:
    """The text with SHARE of its tokens masked, one at least, and what they were; none of a text without tokens."""
    encoding = watch.encode(model, example.given, count=True)
    ids, type_ids = list(encoding.ids), list(encoding.type_ids)
    places = [place for place in content(encoding) if ids[place] != model.mask_token_id]
    count = min(len(places), max(1, round(SHARE * len(places))))
    chosen = sorted(generator.choice(places, count, replace=False).tolist()) if places else []
    truth = [ids[place] for place in chosen]
    for place in chosen:
        ids[place] = model.mask_token_id
    return Masked(ids, type_ids, chosen), truth


def fill(model: FillMask, hidden: Masked) -> Float:
    """Log-probabilities [masks,V]; one text at a time, as the graph gives logits for every token."""
    ((_, logits),) = model.runner([hidden], Batching())
    rows = logits[hidden.masks]
    check_numbers(rows)
    return log_softmax(rows)


def _sums(log_probs: Float, truth: Sequence[int], first: Float) -> list[float]:
    """Loss, right guesses, the same guesses as the first model, divergence from it."""
    best = log_probs.argmax(axis=1)
    return [
        -float(log_probs[np.arange(len(truth)), truth].sum(dtype=np.float64)),
        float((best == truth).sum()),
        float((best == first.argmax(axis=1)).sum()),
        float(divergence(first, log_probs).sum()),
    ]


def _measures(sums: npt.NDArray[np.float64], masks: Sequence[int], *, closeness: bool) -> list[Measure]:
    measures = [mean(LOSS, sums[:, 0], masks), mean(ACCURACY, sums[:, 1], masks)]
    return measures + ([mean(AGREEMENT, sums[:, 2], masks), mean(KL, sums[:, 3], masks)] if closeness else [])
