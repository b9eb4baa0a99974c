"""How likely a GPT finds a text: log-probabilities token by token, and the likelier of several endings.

Letters as in decoder.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from torchless.arguments import check_count
from torchless.cache import KVCache
from torchless.decoder import CHUNK, Decoder, chunks
from torchless.errors import ContextLengthError, InputError
from torchless.sampling import check_numbers, log_softmax
from torchless.text import Tokenizer

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """Log-probabilities (natural logarithm) of a text's tokens, each given those before it.

    The first token is given and has none. offsets: where each token stands in the text, in characters, or none
    for a text given as ids. text_bytes: how long the text after the first token is in UTF-8, None for ids.
    """

    token_ids: list[int]
    logprobs: list[float]
    offsets: list[tuple[int, int]] = field(default_factory=list, repr=False)
    text_bytes: int | None = field(default=None, repr=False)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability; NaN where there is nothing to predict."""
        return float(np.exp(-np.mean(self.logprobs))) if self.logprobs else float("nan")

    @property
    def bits_per_byte(self) -> float:
        """Negative log2-probability a byte of text, comparable between tokenizers; NaN for ids or no text."""
        return float(-np.sum(self.logprobs) / np.log(2) / self.text_bytes) if self.text_bytes else float("nan")


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, first): read tokens begin..end and score first..end, so that each but the first is scored once.

    Each window begins `stride` tokens after the last, so a scored token has at least context - stride before it,
    or all that there are (the perplexity guide of transformers).
    """
    first = 1
    for begin in range(0, length, stride):
        end = min(begin + context, length)
        yield begin, end, first
        if end == length:
            return
        first = end


def score_tokens(decoder: Decoder, ids: Sequence[int], stride: int | None) -> list[float]:
    """Log-probabilities of ids[1:]. Raises ContextLengthError past the context where no stride is given."""
    context = decoder.context_length
    if stride is not None:
        check_count("stride", stride)
        if stride >= context:
            raise InputError(
                f"stride={stride:,}: give less than the context of {context:,}, tokens need others before"
            )
    elif len(ids) > context:
        raise ContextLengthError(
            f"{len(ids):,} tokens do not fit the model's context of {context:,}: pass stride= (such as "
            f"{context // 2:,}) to read them in windows"
        )
    cache = decoder.new_cache()
    scores: list[float] = []
    for begin, end, first in windows(len(ids), context, stride or context):
        cache.lengths[0] = 0  # positions are inside keys and values: each window is read anew
        scores += read(decoder, cache, ids[begin:end], first - begin)
    return scores


def read(decoder: Decoder, cache: KVCache, ids: Sequence[int], first: int) -> list[float]:
    """Log-probabilities of ids[first:] while the cache reads them, a chunk at a time: logits are large."""
    scores: list[float] = []
    for start, end in chunks(len(ids) - 1, CHUNK):
        keep = range(max(first - 1, start), end)
        logits = decoder.extend(cache, ids[start:end], keep=[i - start for i in keep])
        scores += gather(logits, ids[keep.start + 1 : end + 1]) if keep else []
    return scores


def gather(logits: Float, ids: Sequence[int]) -> list[float]:
    """logits [K,V] -> log-probabilities of ids [K]."""
    check_numbers(logits)
    chosen: list[float] = log_softmax(logits)[np.arange(len(ids)), list(ids)].tolist()
    return chosen


@dataclass(frozen=True)
class Ending:
    """The ids of a context with one of its choices; the choice's begin at `start`."""

    ids: list[int]
    start: int

    @classmethod
    def make(cls, tokenizer: Tokenizer, context: str, choice: str) -> Ending:
        """Tokenized together, as the model knows text; the choice begins with the first token that reaches it."""
        encoding = tokenizer.encode(context + choice)
        reach = [end > len(context) for _, end in encoding.offsets]
        start = reach.index(True) if True in reach else len(reach)
        special = encoding.special_tokens_mask  # a template's last tokens are no part of the choice
        return cls([token for i, token in enumerate(encoding.ids) if i < start or not special[i]], start)


def score_endings(decoder: Decoder, endings: Sequence[Ending]) -> list[list[float]]:
    """Log-probabilities of each ending's tokens after what all of them share; the context is read once.

    A token that holds the end of the context and the beginning of a choice belongs to the choice; the others are
    then scored from the same place, or they would be spared what it costs.
    """
    first = endings[0].ids
    shared = min(ending.start for ending in endings)
    while any(ending.ids[:shared] != first[:shared] for ending in endings):
        shared -= 1
    if shared < 1:
        raise InputError("the context has no token of its own: begin it with a word, or the model's first token")
    for number, ending in enumerate(endings):
        if len(ending.ids) > decoder.context_length:
            raise ContextLengthError(
                f"the context with choice {number} has {len(ending.ids):,} tokens, the model takes "
                f"{decoder.context_length:,}: shorten the context"
            )
        if len(ending.ids) == ending.start:
            raise InputError(f"choice {number} is empty: give at least one token")
    cache = decoder.new_cache()
    ahead = decoder.extend(cache, first[:shared])
    scores = []
    for ending in endings:
        cache.lengths[0] = shared  # take the last choice back
        ids = ending.ids[shared:]
        scores.append(gather(ahead, ids[:1]) + read(decoder, cache, ids, 1))
    return scores
