"""What to generate: one frozen dataclass of settings, named and meant as in transformers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from torchless.errors import BundleError, ContextLengthError, InputError
from torchless.log import log
from torchless.setting_rules import FOREVER, check, plain

DEFAULT_NEW_TOKENS = 128
LEAST_NEW = 4  # tokens of the context that keep= must leave
CONSTRAINTS = ("choices", "regex", "json_schema")  # one of them at most
OWN = ("max_new_tokens", "seed", "logprobs", "overflow", "keep", *CONSTRAINTS)  # of a call only
FORCED = ("forced_bos_token_id", "forced_eos_token_id")
COLDEST = 1e-5  # below it a draw is the likeliest token, and float32 logits overflow
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")  # what only a draw reads


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of a generation. Tokens are ids; a value that is out of range (setting_rules.py) is an InputError.

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

    SEVERAL: ClassVar[tuple[str, ...]] = ("num_beams", "num_return_sequences")  # above 1 no single text grows

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
        for name in (one.name for one in fields(self)):
            object.__setattr__(self, name, plain(name, getattr(self, name)))
            check(name, getattr(self, name))
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
        forced = {name: getattr(self, name) for name in FORCED if getattr(self, name) is not None}
        if self.constraints and (self.num_beams > 1 or forced):
            raise InputError(
                f"{self.constraints[0]}: not with num_beams, forced_bos_token_id or forced_eos_token_id"
            )
        if self.min_new_tokens and self.forced_bos_token_id in self.eos_token_id:
            raise InputError(
                f"forced_bos_token_id={self.forced_bos_token_id} ends the text at once, and min_new_tokens="
                f"{self.min_new_tokens} allows no end so early: they contradict each other"
            )
        for name, token in forced.items():
            if (token,) in self.bad_words_ids:
                raise InputError(f"{name}={token} is among bad_words_ids: they contradict each other")
            if self.logit_bias.get(token) == -FOREVER:
                raise InputError(f"{name}={token} has -inf in logit_bias: they contradict each other")

    @classmethod
    def read(cls, path: Path | None, eos: int | list[int] | None) -> GenerationConfig:
        """Defaults of the bundle: generation_config.json as transformers reads it, and the manifest's end tokens.

        Settings of a draw count only with do_sample. Those that are not implemented are logged as ignored, and so
        are those that only a call has: how long a text may get depends on its prompt and the context.
        """
        config = cls().override({"eos_token_id": eos})
        if path is None:
            return config
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(raw, dict):
                raise InputError("it is no JSON object")
            unread = {*OWN, "eos_token_id", *(() if raw.get("do_sample") else ("do_sample", *SAMPLING))}
            known = {one.name for one in fields(cls)} - unread
            given = {name: raw[name] for name in known if raw.get(name) is not None}
            if isinstance(bias := given.get("logit_bias"), dict):  # JSON's keys are texts
                given["logit_bias"] = {int(token) if token.isdecimal() else token: bias[token] for token in bias}
            config = replace(config, **given)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{path} cannot be used: {error}") from None
        for names, why in ((IGNORED, "not implemented, ignored"), (OF_A_CALL, "ignored, a call gives its own")):
            if ignored := [name for name in names if raw.get(name) not in (None, *names[name])]:
                log.warning("%s: %s: %s", path, ", ".join(ignored), why)
        return config

    def override(self, settings: Mapping[str, Any], *, assisted: bool = False) -> GenerationConfig:
        """These settings instead; an unknown one is an InputError that names the known ones.

        assisted: whether an assistant_model comes with them. A setting that has no effect is logged as ignored.
        """
        known = {one.name for one in fields(self)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise InputError(f"unknown setting {', '.join(unknown)} (known: {', '.join(sorted(known))})")
        config = replace(self, **settings)
        asks = [name for name in SAMPLING if settings.get(name) is not None]
        if asks and settings.get("do_sample") is None:
            config = replace(config, do_sample=config.temperature != 0)
        if lost := [name for name in asks if not config.samples and (name != "temperature" or config.temperature)]:
            why = "temperature=0" if config.temperature <= COLDEST else "do_sample=False"
            log.warning("%s: %s ignored", why, ", ".join(lost))
        if config.num_return_sequences > 1 and config.num_beams == 1 and not config.samples:
            raise InputError(
                f"num_return_sequences={config.num_return_sequences}: the likeliest text is always the same one; "
                "pass do_sample=True and a temperature above 0, or num_beams"
            )
        if "keep" in settings and not config.slides:
            log.warning("overflow='error': keep ignored")
        if "max_matching_ngram_size" in settings and not config.prompt_lookup_num_tokens:
            log.warning("without prompt_lookup_num_tokens: max_matching_ngram_size ignored")
        if "num_assistant_tokens" in settings and not assisted:
            log.warning("without assistant_model: num_assistant_tokens ignored")
        if config.num_beams == 1 and (
            lost := [name for name in ("length_penalty", "early_stopping") if name in settings]
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

    @property
    def grows(self) -> bool:
        """Whether a prompt gets one text that grows, rather than beams or several."""
        return all(getattr(self, name) == 1 for name in self.SEVERAL)

    def budget(self, prompt: int, context: int) -> int:
        """How many tokens may follow a prompt of this length.

        Raises ContextLengthError if they do not fit, and InputError for two forced tokens in the room of one.
        """
        count = self._budget(prompt, context)
        first, last = self.forced_bos_token_id, self.forced_eos_token_id
        if count == 1 and None not in (first, last) and first != last:
            raise InputError(
                f"forced_bos_token_id={first} and forced_eos_token_id={last}: there is room for one new token, by "
                "max_new_tokens or the context: give room for two, or one of them"
            )
        return count

    def _budget(self, prompt: int, context: int) -> int:
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
        if room == 0 and (self.max_new_tokens or self.min_new_tokens):
            raise ContextLengthError(
                f"the prompt has {prompt:,} of the context's {context:,} tokens, nothing can follow: shorten it, "
                "or pass overflow='slide'"
            )
        if self.min_new_tokens > room:
            raise ContextLengthError(
                f"{prompt:,} tokens of prompt and min_new_tokens={self.min_new_tokens:,} do not fit the model's "
                f"context of {context:,}: pass min_new_tokens={room} or less, or shorten the prompt"
            )
        if self.max_new_tokens is None:
            return min(max(DEFAULT_NEW_TOKENS, self.min_new_tokens), room)
        if self.max_new_tokens > room:
            raise ContextLengthError(
                f"{prompt:,} tokens of prompt and max_new_tokens={self.max_new_tokens:,} do not fit the model's "
                f"context of {context:,}: pass max_new_tokens={room} or less, or shorten the prompt"
            )
        return self.max_new_tokens

    def check_tokens(self, vocabulary: int) -> None:
        """Raise InputError for a token that a setting names and a vocabulary of this size does not have."""
        named = {
            "eos_token_id": self.eos_token_id,
            **{name: (getattr(self, name),) for name in FORCED},
            "bad_words_ids": tuple(chain(*self.bad_words_ids)),
            "logit_bias": tuple(self.logit_bias),
        }
        for name, tokens in named.items():
            if unknown := [token for token in tokens if token is not None and token >= vocabulary]:
                raise InputError(f"{name} holds {unknown[0]:,}: token ids must be from 0 to {vocabulary - 1:,}")


# Settings of transformers that change the text and are not implemented, with the values that change nothing ...
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
    "encoder_repetition_penalty": (1,),
    "diversity_penalty": (0,),
    "renormalize_logits": (False,),
    "token_healing": (False,),
    "top_h": (),
    "force_words_ids": (),
    "constraints": (),
    "watermarking_config": (),
    "dola_layers": (),
}
# ... and those that only a call has; of a whole text's length, prompt included, it has none.
OF_A_CALL: dict[str, tuple[Any, ...]] = {"max_length": (20,), "min_length": (0,), **dict.fromkeys(OWN, ())}
