"""What to generate, and the loop that does it: one call of the graph, one choice, one reason to stop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from torchless.decoder import Decoder
from torchless.errors import BundleError, ContextLengthError, InputError
from torchless.sampling import Sampler, make_sampler

FinishReason = Literal["stop", "length"]
DEFAULT_NEW_TOKENS = 128
COLDEST = 1e-5  # below it a draw is the likeliest token, and float32 logits overflow


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of a generation, named and meant as in transformers.

    max_new_tokens: None for 128, or fewer where the context ends. do_sample: None samples when temperature,
    top_k, top_p or seed are given. top_k=0 and top_p=1 keep every token. eos_token_id: ids that end the text.
    """

    max_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    eos_token_id: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check("max_new_tokens", self.max_new_tokens, int, lambda v: v >= 0, "0 or more", optional=True)
        _check("do_sample", self.do_sample, bool, lambda v: True, "True or False", optional=True)
        _check("temperature", self.temperature, float, lambda v: 0 <= v < float("inf"), "0 or more")
        _check("top_k", self.top_k, int, lambda v: v >= 0, "0 (all) or more")
        _check("top_p", self.top_p, float, lambda v: 0 < v <= 1, "above 0, and 1 at most")
        _check("seed", self.seed, int, lambda v: v >= 0, "0 or more", optional=True)
        for token in self.eos_token_id:
            _check("eos_token_id", token, int, lambda v: v >= 0, "a token id, a sequence of them or None")

    @classmethod
    def read(cls, path: Path | None, eos: int | list[int] | None) -> GenerationConfig:
        """Defaults of the bundle: sampling settings of generation_config.json, and the manifest's end tokens."""
        config = cls(eos_token_id=_ids_of(eos))
        if path is None:
            return config
        try:
            raw: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if not raw.get("do_sample"):
                return config  # transformers ignores the rest then
            names = ("temperature", "top_k", "top_p")
            return replace(config, do_sample=True, **{n: raw[n] for n in names if raw.get(n) is not None})
        except (ValueError, AttributeError) as error:
            raise BundleError(f"{path} cannot be used: {error}") from None

    def override(self, settings: Mapping[str, Any]) -> GenerationConfig:
        """These settings instead; an unknown one is an InputError that names the known ones."""
        known = {field.name for field in fields(self)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise InputError(f"unknown setting {', '.join(unknown)} (known: {', '.join(sorted(known))})")
        given = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
        if "eos_token_id" in given:
            given["eos_token_id"] = _ids_of(given["eos_token_id"])
        asks = any(given.get(name) is not None for name in ("temperature", "top_k", "top_p", "seed"))
        if asks and given.get("do_sample") is None:
            given["do_sample"] = given.get("temperature") != 0
        return replace(self, **given)

    @property
    def samples(self) -> bool:
        return bool(self.do_sample) and self.temperature > COLDEST

    def sampler(self) -> Sampler:
        """A sampler of its own for each row, so that a seed gives the same text in every position of a batch."""
        return make_sampler(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            sample=self.samples,
        )

    def budget(self, prompt: int, context: int) -> int:
        """How many tokens may follow a prompt of this length. Raises ContextLengthError if they do not fit."""
        room = context - prompt
        if room < 0:
            raise ContextLengthError(
                f"the prompt has {prompt:,} tokens, the model's context is {context:,}: shorten the prompt"
            )
        if self.max_new_tokens is None:
            return min(DEFAULT_NEW_TOKENS, room)
        if self.max_new_tokens > room:
            raise ContextLengthError(
                f"{prompt:,} tokens of prompt and max_new_tokens={self.max_new_tokens:,} do not fit the model's "
                f"context of {context:,}: pass max_new_tokens={room} or less, or shorten the prompt"
            )
        return self.max_new_tokens


@dataclass(frozen=True)
class Token:
    """One new token of one prompt; the last of a prompt says why it is the last."""

    prompt: int  # which of the prompts
    id: int
    finish_reason: FinishReason | None


def decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    samplers: Sequence[Sampler],
    budgets: Sequence[int],
    stops: frozenset[int] = frozenset(),
) -> Iterator[Token]:
    """Yield every new token of every prompt, as it is chosen. A budget of 0 yields nothing for its prompt.

    Prompts are read one by one and continued together; one that is done leaves the batch.
    """
    active = [index for index, budget in enumerate(budgets) if budget > 0]
    left = {index: budgets[index] for index in active}
    cache = decoder.new_cache(len(active))
    cache.reserve(max((len(prompts[i]) for i in active), default=0))
    step = decoder.stepper(cache)

    def choose(index: int, logits: Any) -> Token:
        token = samplers[index](logits)
        left[index] -= 1
        return Token(index, token, "stop" if token in stops else "length" if left[index] == 0 else None)

    last: list[Token] = []
    for row, index in enumerate(active):
        last.append(choose(index, decoder.extend(cache, prompts[index], row=row)[-1]))
        yield last[-1]
    while True:
        for row in reversed(range(len(last))):  # backwards: a dropped row's place is taken by one seen before
            if last[row].finish_reason:
                cache.drop(row)
                last[row] = last[-1]
                last.pop()
        if not last:
            return
        logits = step([token.id for token in last])
        for row, token in enumerate(last):
            last[row] = choose(token.prompt, logits[row])
            yield last[row]


def _ids_of(eos: Any) -> tuple[Any, ...]:
    """None, one id or several -> a tuple of them, which GenerationConfig checks one by one."""
    several = isinstance(eos, Iterable) and not isinstance(eos, str | bytes)
    return () if eos is None else tuple(eos) if several else (eos,)


def _check(name: str, value: Any, kind: type, valid: Any, meaning: str, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    right = isinstance(value, int | float if kind is float else kind)
    if (isinstance(value, bool) and kind is not bool) or not right or not valid(value):
        raise InputError(f"{name}={value!r}: give {meaning}{' or None' if optional else ''}")
