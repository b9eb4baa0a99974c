"""Speculative decoding: cheap guesses at the next tokens, several of them checked by one step of the model.

A guess that the model would not have made is not taken, so the text is the model's own (Leviathan et al., 2023).
Letters as in decoder.py.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from torchless.concatenated import ConcatenatingStep
from torchless.decoder import Decoder
from torchless.errors import InputError
from torchless.generation import Row, Speculation, Token
from torchless.generation_config import GenerationConfig
from torchless.sampling import Guess, draw, spread
from torchless.step import Step
from torchless.text import TOKENIZER

if TYPE_CHECKING:
    from torchless.tasks.text_generation import TextGeneration

Float = npt.NDArray[np.float32]

# A guess is checked while the chance that it and those before it are right is above what it costs, in tokens: on
# the CPU a step takes about a tenth longer with each token that it checks; a draft model's own steps add to it.
LOOKUP_COST, ASSISTANT_COST = 0.2, 0.4
MEMORY = 0.8  # of what earlier guesses have told, after each new one
SUREST = 0.99  # no rate is above it: every run of guesses ends
BOUND = 4  # steps of different lengths that stay bound to their buffers


class Drafter(Protocol):
    """Guesses for one row, asked before each step. It sees in the row's ids what became of the last ones."""

    def draft(self, row: Row, room: int) -> list[Guess]:
        """Up to `room` tokens that may come next, in order."""
        ...


class Pace:
    """How many guesses are worth a check: the share that was right lately tells.

    most: never more. cost: of one guess, in tokens. rate: the share that is believed at first.
    """

    def __init__(self, most: int, cost: float, rate: float) -> None:
        self._most, self._cost, self._rate = most, cost, rate

    def length(self) -> int:
        if self._rate <= self._cost:
            return 0
        return min(self._most, int(math.log(self._cost) / math.log(self._rate)))

    def learn(self, right: bool) -> None:
        self._rate = min(MEMORY * self._rate + (1 - MEMORY) * right, SUREST)


class PromptLookup:
    """Guesses that the text goes on as it did the last time that it read as it does now (Saxena, 2023).

    The longest run of tokens counts that ends the text and was there before, of `longest` tokens at most. Runs of
    each length have a pace of their own: long ones are surer. Every token teaches it, those of the prompt too.
    """

    def __init__(self, most: int, longest: int) -> None:
        self._longest = longest
        self._paces = [Pace(most, LOOKUP_COST, rate=0.0) for _ in range(longest + 1)]
        self._ids: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}  # where the text went on after each run, the last time
        self._size = self._place = 0  # of the run that ends the text: its length, and where it went on before

    def draft(self, row: Row, room: int) -> list[Guess]:
        for token in row.ids[len(self._ids) :].tolist():
            self._read(token)
        if not self._size:
            return []
        count = min(self._paces[self._size].length(), room)
        circle = self._ids[self._place : self._place + count]  # shorter where the text goes round in one
        return [Guess(token) for token, _ in zip(itertools.cycle(circle), range(count))]

    def _read(self, token: int) -> None:
        if self._size:
            self._paces[self._size].learn(token == self._ids[self._place])
        self._ids.append(token)
        end, self._size = len(self._ids), 0
        for size in range(1, min(self._longest, end) + 1):
            run = tuple(self._ids[end - size :])
            if run in self._follows:
                self._size, self._place = size, self._follows[run]
            self._follows[run] = end


class DraftModel:
    """Guesses what a smaller model would say, drawn from its own distribution where the row draws."""

    def __init__(self, decoder: Decoder, most: int) -> None:
        self._decoder = decoder
        self._cache = decoder.new_cache()
        self._pace = Pace(most, ASSISTANT_COST, rate=0.8)
        self._guessed: list[Guess] = []
        self._before = 0  # tokens of the text when they were made

    def draft(self, row: Row, room: int) -> list[Guess]:
        ids, held = row.ids, int(self._cache.lengths[0])
        right = 0
        for guess, token in zip(self._guessed, ids[self._before :].tolist()):
            self._pace.learn(guess.token == token)
            if guess.token != token:
                break
            right += 1
        self._cache.lengths[0] = min(held, self._before + right)  # take back what was guessed wrong
        self._before, self._guessed = len(ids), []
        # One guess at least, or it would never be seen that they have become better.
        count = min(max(1, self._pace.length()), room, self._decoder.context_length - len(ids) + 1)
        text = np.append(ids, np.zeros(max(count, 0), np.int64))
        for end in range(len(ids), len(ids) + count):
            logits = self._decoder.extend(self._cache, text[self._cache.lengths[0] : end].tolist())[-1]
            try:
                logits = row.sampler.filter(logits, text[:end], row.added + end - len(ids))
            except InputError:  # no token is left, where the text may never come
                break
            self._guessed.append(_guess(logits, row.sampler.generator))
            text[end] = self._guessed[-1].token
        return self._guessed


def _guess(logits: Float, generator: np.random.Generator | None) -> Guess:
    if generator is None:
        return Guess(int(np.argmax(logits)))
    candidates, chances = spread(logits)
    probabilities = np.zeros(len(logits))
    probabilities[candidates] = chances
    return Guess(int(candidates[draw(chances, generator)]), probabilities)


def speculate(decoder: Decoder, rows: Sequence[Row], make: Callable[[], Drafter]) -> Iterator[Token]:
    """Yield what `generation.decode` yields, one row after the other; each has a drafter of its own.

    A step without guesses is the one of `decode`. One with guesses rounds as the chunks of a prompt do.
    """
    for index, row in enumerate(rows):
        row.speculation = Speculation()
        if row.budget > 0 and row.ends(None) is None:
            yield from _continue(decoder, index, row, make())


def _continue(decoder: Decoder, index: int, row: Row, drafter: Drafter) -> Iterator[Token]:
    cache = decoder.new_cache()

    @functools.lru_cache(maxsize=BOUND)
    def bind(tokens: int) -> Step | ConcatenatingStep:
        step = decoder.step(cache, 0, 1, tokens, tokens)
        step.logits_positions[0] = range(tokens)
        return step

    cache.reserve(row.slots(cache.limit))
    logits = row.read(decoder, cache)
    if logits is None:
        return
    token = row.choose(index, logits)
    yield token
    steps = drafted = accepted = 0
    while token.finish_reason is None:
        guesses = drafter.draft(row, room=row.budget - row.added - 1)
        given = [token.id, *(guess.token for guess in guesses)]
        if cache.reserve(int(cache.lengths[0]) + len(given)):
            bind.cache_clear()  # they are bound to the old buffer
        step = bind(len(given))
        step.input_ids[0] = given
        verified = step.run()[0]
        steps, drafted = steps + 1, drafted + len(guesses)
        for place, guess in enumerate([*guesses, None]):
            token = row.choose(index, verified[place], guess)
            right = guess is not None and token.id == guess.token
            accepted += right
            row.speculation = Speculation(steps, drafted, accepted)
            yield token
            if not right or token.finish_reason:
                break
        cache.lengths[0] = len(row.ids) - 1  # all but the new token; what was guessed wrong is taken back


def drafting(
    config: GenerationConfig, model: TextGeneration, assistant: TextGeneration | None
) -> Callable[[], Drafter] | None:
    """What makes a drafter for each text, as the settings ask; None for decoding without guesses.

    Raises InputError for an assistant that is no TextGeneration or has another vocabulary, and for settings that
    exclude each other.
    """
    lookup = config.prompt_lookup_num_tokens
    if assistant is None:
        longest = min(config.max_matching_ngram_size, model.context_length)  # no text has longer ones
        return None if lookup is None else lambda: PromptLookup(lookup, longest)
    if lookup is not None:
        raise InputError("prompt_lookup_num_tokens and assistant_model both guess: give one of them")
    if config.num_beams > 1 or config.slides:
        raise InputError("assistant_model: not with num_beams or overflow='slide'")
    if not isinstance(assistant, type(model)):
        raise InputError(
            f"assistant_model is a {type(assistant).__name__}: give what torchless.load returns for a GPT"
        )
    if not _same_vocabulary(model, assistant):
        raise InputError(
            f"{assistant.bundle.path} has another vocabulary than {model.bundle.path}: an assistant_model needs the"
            " same tokenizer"
        )
    decoder = assistant.decoder
    return lambda: DraftModel(decoder, config.num_assistant_tokens)


def _same_vocabulary(one: TextGeneration, other: TextGeneration) -> bool:
    """Whether an id means the same to both; of bundles without tokenizers, whether there are as many."""
    if one.decoder.vocab_size != other.decoder.vocab_size:
        return False
    files = [model.bundle.manifest.files.get(TOKENIZER) for model in (one, other)]
    if files[0] == files[1]:
        return True
    return None not in files and one.tokenizer.fast.get_vocab() == other.tokenizer.fast.get_vocab()
