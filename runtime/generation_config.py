"""What to generate: one frozen dataclass of settings, named and meant as in transformers."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from torchless.errors import BundleError, ContextLengthError, InputError

log = logging.getLogger("torchless")

DEFAULT_NEW_TOKENS = 128
LEAST_NEW = 4  # tokens of the context that keep= must leave
CONSTRAINTS = ("choices", "regex", "json_schema")  # one of them at most
OWN = {"eos_token_id", "seed", "max_new_tokens", "logprobs", "overflow", "keep", *CONSTRAINTS}  # of a call only
COLDEST = 1e-5  # below it a draw is the likeliest token, and float32 logits overflow
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")  # what only a draw reads


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of a generation. Tokens are ids; a value that is out of range is an InputError.

    How long: max_new_tokens (None: 128, or fewer where the context ends), min_new_tokens (no end token before),
    eos_token_id (ids that end the text), forced_bos_token_id and forced_eos_token_id (the first token that is
    added, and the last that max_new_tokens allows).

    Past the context: overflow="error" refuses, "slide" goes on; whenever the next token has no room, the model
    reads anew the first `keep` tokens of the text, and as many of the newest as fill half of the other room.

    Sooner: stop_strings (a text ends before the first of them), max_time (seconds). logprobs: how many of the
    likeliest tokens come with each token, 0 for its own log-probability alone, None for none.

    How a token is chosen: the likeliest, or a draw with do_sample (None: if one of its settings is given):
    temperature, top_k (0: all), top_p, min_p (of the likeliest one's probability; Nguyen et al., 2024),
    typical_p (Meister et al., 2022), seed.

    Beams (num_beams above 1): the best texts as a whole, ranked by log-probability over length to the power of
    length_penalty; early_stopping ends the search when num_beams texts have ended (True), when no running one is
    likely to beat them (False), or when none can ("never"). num_return_sequences: how many texts a prompt gets,
    of beams or of draws.

    What the text so far does to it: repetition_penalty (prompt too; Keskar et al., 2019), presence_penalty and
    frequency_penalty (of what was added; OpenAI's), no_repeat_ngram_size, bad_words_ids (sequences that never
    occur), logit_bias (a number to add, by token).

    What form it has (docs/constrain.md): one of choices (texts), all of regex, or JSON of json_schema (a mapping,
    or its text). finish_reason is "stop" where the form is complete.

    Faster, with the same text: prompt_lookup_num_tokens (guess up to so many tokens at once, those that followed
    the text's last max_matching_ngram_size tokens, or fewer, earlier in it), num_assistant_tokens (the same,
    guessed by the assistant_model that a call is given).
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    eos_token_id: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    overflow: str = "error"
    keep: int = 4
    stop_strings: tuple[str, ...] = ()
    max_time: float | None = None
    logprobs: int | None = None
    do_sample: bool | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    choices: tuple[str, ...] | None = None
    regex: str | None = None
    json_schema: str | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int = 2
    num_assistant_tokens: int = 20
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name, (kind, valid, meaning) in RULES.items():
            _check(name, getattr(self, name), kind, valid, meaning)
        for name in ("eos_token_id", "forced_bos_token_id", "forced_eos_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, tuple) else (value,):
                _check(name, token, int | None, lambda v: v >= 0, "a token id, a sequence of them or None")
        for string in self.stop_strings:
            if not isinstance(string, str) or not string:
                raise InputError(f"stop_strings: {string!r}: give texts of one character or more")
        for words in self.bad_words_ids:
            if not words:
                raise InputError("bad_words_ids holds an empty sequence: leave it out")
            for token in words:
                _check("bad_words_ids", token, int, lambda v: v >= 0, "lists of token ids")
        for token, bias in self.logit_bias.items():
            _check("logit_bias", token, int, lambda v: v >= 0, "a mapping from token ids to numbers")
            _check("logit_bias", bias, float, lambda v: v == v, "a mapping from token ids to numbers")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                f"min_new_tokens={self.min_new_tokens} and max_new_tokens={self.max_new_tokens} contradict "
                "each other"
            )
        if self.num_beams > 1 and (self.stop_strings or self.logprobs is not None or self.max_time is not None):
            raise InputError("stop_strings, max_time and logprobs follow one text as it grows: not with num_beams")
        if self.num_beams > 1 and self.slides:
            raise InputError("overflow='slide' follows one text as it grows: not with num_beams")
        if self.prompt_lookup_num_tokens and (self.num_beams > 1 or self.slides):
            raise InputError("prompt_lookup_num_tokens: not with num_beams or overflow='slide'")
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise InputError(
                f"num_return_sequences={self.num_return_sequences} and num_beams={self.num_beams}: there are no "
                "more texts than beams"
            )
        if len(self.constraints) > 1:
            raise InputError(f"{' and '.join(self.constraints)}: give one of them, a text has one form")
        forced = (self.forced_bos_token_id, self.forced_eos_token_id) != (None, None)
        if self.constraints and (self.num_beams > 1 or forced):
            raise InputError(
                f"{self.constraints[0]}: not with num_beams, forced_bos_token_id or forced_eos_token_id"
            )
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            if (getattr(self, name),) in self.bad_words_ids:
                raise InputError(f"{name}={getattr(self, name)} is among bad_words_ids: they contradict each other")

    @classmethod
    def read(cls, path: Path | None, eos: int | list[int] | None) -> GenerationConfig:
        """Defaults of the bundle: generation_config.json as transformers reads it, and the manifest's end tokens.

        Settings of a draw count only with do_sample; those that are not implemented are logged as ignored.
        """
        config = cls(eos_token_id=_ids_of(eos))
        if path is None:
            return config
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            names = {one.name for one in fields(cls)} - OWN
            given = {name: raw[name] for name in names if raw.get(name) is not None}
            if ignored := [name for name in IGNORED if raw.get(name) not in (None, *IGNORED[name])]:
                log.warning("%s: %s: not implemented, ignored", path, ", ".join(ignored))
            if not raw.get("do_sample"):
                given = {name: value for name, value in given.items() if name not in (*SAMPLING, "do_sample")}
            return replace(config, **_plain(given))
        except (ValueError, AttributeError, TypeError, InputError) as error:
            raise BundleError(f"{path} cannot be used: {error}") from None

    def override(self, settings: Mapping[str, Any]) -> GenerationConfig:
        """These settings instead; an unknown one is an InputError that names the known ones."""
        known = {one.name for one in fields(self)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise InputError(f"unknown setting {', '.join(unknown)} (known: {', '.join(sorted(known))})")
        given = _plain(settings)
        asks = [name for name in SAMPLING if given.get(name) is not None]
        if given.get("do_sample") is False and asks:
            log.warning("do_sample=False: %s ignored", ", ".join(asks))
        if asks and given.get("do_sample") is None:
            given["do_sample"] = given.get("temperature") != 0
        config = replace(self, **given)
        if config.num_return_sequences > 1 and config.num_beams == 1 and not config.samples:
            raise InputError(
                f"num_return_sequences={config.num_return_sequences}: the likeliest text is always the same one; "
                "pass do_sample=True, or num_beams"
            )
        if "keep" in given and not config.slides:
            log.warning("overflow='error': keep ignored")
        if "max_matching_ngram_size" in given and not config.prompt_lookup_num_tokens:
            log.warning("without prompt_lookup_num_tokens: max_matching_ngram_size ignored")
        if config.num_beams == 1 and (
            lost := [name for name in ("length_penalty", "early_stopping") if name in given]
        ):
            log.warning("num_beams=1: %s ignored", ", ".join(lost))
        return config

    @property
    def samples(self) -> bool:
        return bool(self.do_sample) and self.temperature > COLDEST

    @property
    def constraints(self) -> list[str]:
        """The names of those that are given."""
        return [name for name in CONSTRAINTS if getattr(self, name) is not None]

    @property
    def slides(self) -> bool:
        return self.overflow == "slide"

    def budget(self, prompt: int, context: int) -> int:
        """How many tokens may follow a prompt of this length. Raises ContextLengthError if they do not fit."""
        if self.slides:
            if self.keep > context - LEAST_NEW:
                raise InputError(
                    f"keep={self.keep:,}: give {context - LEAST_NEW:,} or less, the context is {context:,}"
                )
            room = sys.maxsize
        else:
            room = context - prompt
        if room < 0:
            raise ContextLengthError(
                f"the prompt has {prompt:,} tokens, the model's context is {context:,}: shorten the prompt"
            )
        if self.max_new_tokens is None:
            return min(max(DEFAULT_NEW_TOKENS, self.min_new_tokens), room)
        if self.max_new_tokens > room:
            raise ContextLengthError(
                f"{prompt:,} tokens of prompt and max_new_tokens={self.max_new_tokens:,} do not fit the model's "
                f"context of {context:,}: pass max_new_tokens={room} or less, or shorten the prompt"
            )
        return self.max_new_tokens

    def tokens(self) -> set[int]:
        """Every token id that the settings name, for the check against the vocabulary."""
        named = {*self.eos_token_id, self.forced_bos_token_id, self.forced_eos_token_id, *self.logit_bias}
        return {token for token in named if token is not None} | {t for words in self.bad_words_ids for t in words}


Rule = tuple[Any, Callable[[Any], bool], str]
RULES: dict[str, Rule] = {
    "max_new_tokens": (int | None, lambda v: v >= 0, "0 or more or None"),
    "min_new_tokens": (int, lambda v: v >= 0, "0 or more"),
    "overflow": (str, lambda v: v in ("error", "slide"), "'error' or 'slide'"),
    "keep": (int, lambda v: v >= 0, "0 or more"),
    "max_time": (int | float | None, lambda v: v >= 0, "seconds, 0 or more, or None"),
    "logprobs": (int | None, lambda v: v >= 0, "0 or more or None"),
    "do_sample": (bool | None, lambda v: True, "True or False or None"),
    "temperature": (float, lambda v: 0 <= v < float("inf"), "0 or more"),
    "top_k": (int, lambda v: v >= 0, "0 (all) or more"),
    "top_p": (float, lambda v: 0 < v <= 1, "above 0, and 1 at most"),
    "min_p": (float, lambda v: 0 <= v <= 1, "from 0 to 1"),
    "typical_p": (float, lambda v: 0 < v <= 1, "above 0, and 1 at most"),
    "seed": (int | None, lambda v: v >= 0, "0 or more or None"),
    "num_beams": (int, lambda v: v >= 1, "1 (no beams) or more"),
    "length_penalty": (float, lambda v: abs(v) < float("inf"), "a number"),
    "early_stopping": (bool | str, lambda v: isinstance(v, bool) or v == "never", "True, False or 'never'"),
    "num_return_sequences": (int, lambda v: v >= 1, "1 or more"),
    "repetition_penalty": (float, lambda v: 0 < v < float("inf"), "above 0 (1: none)"),
    "presence_penalty": (float, lambda v: abs(v) < float("inf"), "a number (0: none)"),
    "frequency_penalty": (float, lambda v: abs(v) < float("inf"), "a number (0: none)"),
    "no_repeat_ngram_size": (int, lambda v: v >= 0, "0 (none) or more"),
    "choices": (tuple | None, lambda v: v and all(isinstance(one, str) and one for one in v), "texts, not empty"),
    "regex": (str | None, lambda v: True, "a text or None"),
    "json_schema": (str | None, lambda v: True, "a mapping, or the text of one in JSON"),
    "prompt_lookup_num_tokens": (int | None, lambda v: v >= 1, "1 or more, or None"),
    "max_matching_ngram_size": (int, lambda v: v >= 1, "1 or more"),
    "num_assistant_tokens": (int, lambda v: v >= 1, "1 or more"),
}
# Settings of transformers that change the text and are not implemented, with the values that change nothing.
IGNORED: dict[str, tuple[Any, ...]] = {
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({},),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of numpy as Python's, and sequences as tuples."""
    given = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
    if "eos_token_id" in given:
        given["eos_token_id"] = _ids_of(given["eos_token_id"])
    if "stop_strings" in given:
        strings = () if given["stop_strings"] is None else given["stop_strings"]
        if not isinstance(strings, str | Sequence):
            raise InputError(f"stop_strings={strings!r}: give a text or a list of texts")
        given["stop_strings"] = (strings,) if isinstance(strings, str) else tuple(strings)
    if "bad_words_ids" in given:
        words = given["bad_words_ids"] or ()
        if not isinstance(words, Sequence) or not all(isinstance(one, Sequence) for one in words):
            raise InputError(f"bad_words_ids={words!r}: give lists of token ids")
        given["bad_words_ids"] = tuple(tuple(one) for one in words)
    if isinstance(given.get("choices"), list):
        given["choices"] = tuple(given["choices"])
    if isinstance(given.get("json_schema"), Mapping):
        try:
            given["json_schema"] = json.dumps(given["json_schema"])
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"json_schema is not JSON ({error})") from None
    if "logit_bias" in given:
        if not isinstance(given["logit_bias"] or {}, Mapping):
            raise InputError("logit_bias: give a mapping from token ids to numbers")
        given["logit_bias"] = MappingProxyType(dict(given["logit_bias"] or {}))
    return given


def _ids_of(eos: Any) -> tuple[Any, ...]:
    """None, one id or several -> a tuple of them, which GenerationConfig checks one by one."""
    several = isinstance(eos, Iterable) and not isinstance(eos, str | bytes)
    return () if eos is None else tuple(eos) if several else (eos,)


def _check(name: str, value: Any, kind: Any, valid: Callable[[Any], bool], meaning: str) -> None:
    kinds = (int | float) if kind is float else kind
    boolean = isinstance(value, bool) and kind not in (bool | None, bool | str)
    if boolean or not isinstance(value, kinds) or (value is not None and not valid(value)):
        raise InputError(f"{name}={value!r}: give {meaning}")
