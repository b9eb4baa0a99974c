"""Beam search: the likeliest texts, several at once (as transformers' generate defines it, id by id).

Letters: N beams, V vocabulary, T tokens so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from torchless.decoder import Decoder
from torchless.errors import InputError
from torchless.generation_config import GenerationConfig
from torchless.sampling import FORBIDDING, FORCING, Filter, check_numbers, log_softmax, make_filters, those_of

Float = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Beam:
    """A finished text: what was added, and its log-probability divided by its length to the length_penalty."""

    ids: list[int]
    score: float
    finish_reason: Literal["stop", "length"]


def beam_search(decoder: Decoder, prompt: list[int], config: GenerationConfig, budget: int) -> list[Beam]:
    """The best config.num_return_sequences texts of up to `budget` new tokens, best first.

    With config.samples the candidates of a step are drawn without replacement, by their accumulated
    log-probability, instead of being the best ones.
    """
    if config.num_beams > decoder.vocab_size - len(config.eos_token_id):
        raise InputError(
            f"num_beams={config.num_beams:,}: the vocabulary has {decoder.vocab_size:,} tokens, give fewer"
        )
    if budget == 0:
        return [Beam([], 0.0, "length")] * config.num_return_sequences
    search = Search(prompt, config, budget)
    cache = decoder.new_cache(config.num_beams)
    cache.reserve(len(prompt))
    logits = decoder.extend(cache, prompt)[-1:]  # [1,V]: the prompt is read once
    cache.share(len(prompt))
    step = decoder.stepper(cache)
    while search.advance(logits):
        cache.reorder(search.parents, len(prompt))
        logits = step(search.ids[:, search.end - 1].tolist())
    return search.best()


class Search:
    """The beams of one prompt, and those that are finished."""

    def __init__(self, prompt: list[int], config: GenerationConfig, budget: int) -> None:
        beams = config.num_beams
        self.ids = np.zeros((beams, len(prompt) + budget), np.int64)
        self.ids[:, : len(prompt)] = prompt
        self.end = len(prompt)  # tokens so far
        self.parents = np.zeros(beams, np.int64)  # which beam each one has grown from
        self._start, self._budget, self._config = len(prompt), budget, config
        self._stops = np.array(config.eos_token_id, np.int64)
        # Enough that N beams go on even if every one of the best ends here.
        self._candidates = max(2, 1 + len(self._stops)) * beams
        self._filters: list[Filter] = make_filters(config, budget, least=max(2, 1 + len(self._stops)))
        self._generator = np.random.default_rng(config.seed) if config.samples else None
        self._scores = np.zeros(1)  # [N], but one before the first step: all beams would be the same
        self._finished: list[Beam] = []

    def advance(self, logits: Float) -> bool:
        """Choose the next token of every beam from logits [N,V] (or [1,V] at first); False at the end."""
        beams, vocab = self._config.num_beams, logits.shape[1]
        totals = (self._log_probabilities(logits) + self._scores[:, None]).ravel()
        order = self._choose(totals)
        parents, tokens, scores = order // vocab, order % vocab, totals[order]
        self.end += 1
        added = self.end - self._start
        ended = np.isin(tokens, self._stops) | (added == self._budget)
        if len(self._finished) < beams or self._config.early_stopping is not True:
            for place in np.flatnonzero(ended[:beams]):  # the others are there to go on, not to be answers
                self._finish(parents[place], tokens[place], scores[place])
        going = np.flatnonzero(~ended)[:beams]
        if len(going) < beams or scores[going[0]] == -np.inf:  # the settings forbid whatever could follow
            return False
        self.ids[:] = self.ids[parents[going]]
        self.ids[:, self.end - 1] = tokens[going]
        self.parents, self._scores = parents[going], scores[going]
        return self._can_improve(added)

    def best(self) -> list[Beam]:
        """The answers. Raises InputError where the settings leave fewer than are asked for."""
        count = self._config.num_return_sequences
        possible = [beam for beam in self._finished[:count] if beam.score > -np.inf]
        if len(possible) < count:
            raise InputError(
                f"{those_of(self._config, (*FORBIDDING, *FORCING))} leave {len(possible)} texts, and "
                f"num_return_sequences={count} were asked for: loosen them"
            )
        return possible

    def _log_probabilities(self, logits: Float) -> npt.NDArray[np.float64]:
        check_numbers(logits)
        rows = log_softmax(logits)
        for beam, row in enumerate(rows):
            for keep in self._filters:
                row = keep(row, self.ids[beam, : self.end], self.end - self._start)
            rows[beam] = row
        return rows.astype(np.float64)

    def _choose(self, totals: npt.NDArray[np.float64]) -> Ids:
        """Indices of the candidates, best first."""
        count = min(self._candidates, len(totals))
        drawn = totals
        if self._generator is not None:  # the largest of Gumbel-shifted scores are draws without replacement
            drawn = totals + self._generator.gumbel(size=len(totals))
        top = np.argpartition(-drawn, count - 1)[:count]
        chosen: Ids = top[np.argsort(-totals[top], kind="stable")]
        return chosen

    def _finish(self, parent: int, token: int, score: float) -> None:
        """Keep a text that has ended, if it is among the best N."""
        ids = [*self.ids[parent, self._start : self.end - 1].tolist(), int(token)]
        reason: Literal["stop", "length"] = "stop" if token in self._stops else "length"
        beam = Beam(ids, float(score / len(ids) ** self._config.length_penalty), reason)
        self._finished = sorted([*self._finished, beam], key=lambda one: -one.score)[: self._config.num_beams]

    def _can_improve(self, added: int) -> bool:
        """Can a running beam still beat the worst finished one? early_stopping says how that is judged."""
        c = self._config
        if len(self._finished) < c.num_beams:
            return True
        if c.early_stopping is True:
            return False
        length = self._budget if c.early_stopping == "never" and c.length_penalty > 0 else added
        best: float = float(self._scores[0]) / float(length) ** c.length_penalty
        return best > self._finished[-1].score
