"""The figures of the model cards: bits per byte of a decoder, hits and misses of a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def perplexity(model: PreTrainedModel, rows: Sequence[list[int]], texts: Sequence[str], start: int) -> dict:
    """How well a decoder foretells texts: {"tokens", "bytes", "perplexity", "bits_per_byte"}.

    `rows` are the token ids of `texts`; every text is read from `start`, in windows that fill the context and
    move on by half of it, so that each token (but for a text's first) is judged with at least half a context.
    """
    context = model.config.n_positions
    nats, tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([start, *row])
        judged = 1  # ids[:judged] are known or done
        while judged < len(ids):
            end = min(len(ids), context + 1 if judged == 1 else judged + context // 2)
            window = ids[max(0, end - context - 1) : end]
            logits = model(window[None, :-1], use_cache=False).logits[0].float()  # [S,V]
            losses = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
            nats += losses[judged - end :].double().sum().item()
            tokens += end - judged
            judged = end
    size = sum(len(text.encode()) for text in texts)
    return {
        "tokens": tokens,
        "bytes": size,
        "perplexity": round(math.exp(nats / tokens), 3),
        "bits_per_byte": round(nats / math.log(2) / size, 4),
    }


def confusion(guesses: Sequence[int], labels: Sequence[int]) -> dict:
    """Accuracy, and precision, recall and F1 of label 1, with the four counts behind them."""
    pairs = list(zip(guesses, labels, strict=True))
    hit, false_alarm = pairs.count((1, 1)), pairs.count((1, 0))
    miss, correct_ham = pairs.count((0, 1)), pairs.count((0, 0))
    return {
        "texts": len(pairs),
        "accuracy": round((hit + correct_ham) / len(pairs), 4),
        "precision": round(hit / max(1, hit + false_alarm), 4),
        "recall": round(hit / max(1, hit + miss), 4),
        "f1": round(2 * hit / max(1, 2 * hit + false_alarm + miss), 4),
        "spam found": hit,
        "spam missed": miss,
        "false alarms": false_alarm,
        "ham kept": correct_ham,
    }
