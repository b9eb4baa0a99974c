"""What each setting of a generation may be: its type and range, and the words that say so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from torchless.errors import InputError

LARGEST = 1e9  # of numbers that logits are added to, multiplied or divided by: float32 overflows past 3e38
STEEPEST = 50  # power of a length, which float64 holds up to contexts of a million tokens
FOREVER = float("inf")

Rule = tuple[Any, Callable[[Any], bool], str]
TOKENS: Rule = (int, lambda v: v >= 0, "a token id, a sequence of them or None")
WORDS: Rule = (int, lambda v: v >= 0, "lists of token ids")
BIASED: Rule = (int, lambda v: v >= 0, "a mapping from token ids to numbers")
BIAS: Rule = (
    float,
    lambda v: abs(v) <= LARGEST or v == -FOREVER,
    "a mapping from token ids to numbers, from -1e9 to 1e9 or -inf",
)
NUMBER: Rule = (float, lambda v: abs(v) <= LARGEST, "a number from -1e9 to 1e9 (0: none)")
RULES: dict[str, Rule] = {
    "max_new_tokens": (int | None, lambda v: v >= 0, "0 or more or None"),
    "min_new_tokens": (int, lambda v: v >= 0, "0 or more"),
    "forced_bos_token_id": (int | None, lambda v: v >= 0, "a token id or None"),
    "forced_eos_token_id": (int | None, lambda v: v >= 0, "a token id or None"),
    "overflow": (str, lambda v: v in ("error", "slide"), "'error' or 'slide'"),
    "keep": (int, lambda v: v >= 0, "0 or more"),
    "stop_strings": (tuple, lambda v: True, "a text or a list of texts"),
    "max_time": (int | float | None, lambda v: 0 <= v <= LARGEST or v == FOREVER, "seconds, 0 or more, or None"),
    "logprobs": (int | None, lambda v: v >= 0, "0 or more or None"),
    "do_sample": (bool | None, lambda v: True, "True or False or None"),
    "temperature": (float, lambda v: 0 <= v <= LARGEST, "0 or more, and 1e9 at most"),
    "top_k": (int, lambda v: v >= 0, "0 (all) or more"),
    "top_p": (float, lambda v: 0 < v <= 1, "above 0, and 1 at most"),
    "min_p": (float, lambda v: 0 <= v <= 1, "from 0 to 1"),
    "typical_p": (float, lambda v: 0 < v <= 1, "above 0, and 1 at most"),
    "seed": (int | None, lambda v: v >= 0, "0 or more or None"),
    "num_beams": (int, lambda v: v >= 1, "1 (no beams) or more"),
    "length_penalty": (float, lambda v: abs(v) <= STEEPEST, "a number from -50 to 50"),
    "early_stopping": (bool | str, lambda v: isinstance(v, bool) or v == "never", "True, False or 'never'"),
    "num_return_sequences": (int, lambda v: v >= 1, "1 or more"),
    "repetition_penalty": (float, lambda v: 1 / LARGEST <= v <= LARGEST, "above 0, from 1e-9 to 1e9 (1: none)"),
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "no_repeat_ngram_size": (int, lambda v: v >= 0, "0 (none) or more"),
    "bad_words_ids": (tuple, lambda v: all(isinstance(one, tuple) for one in v), "lists of token ids"),
    "choices": (tuple | None, lambda v: v and all(isinstance(one, str) and one for one in v), "texts, not empty"),
    "regex": (str | None, lambda v: True, "a text or None"),
    "json_schema": (str | None, lambda v: True, "a mapping, or the text of one in JSON"),
    "prompt_lookup_num_tokens": (int | None, lambda v: v >= 1, "1 or more, or None"),
    "max_matching_ngram_size": (int, lambda v: v >= 1, "1 or more"),
    "num_assistant_tokens": (int, lambda v: v >= 1, "1 or more"),
    "logit_bias": (Mapping, lambda v: True, "a mapping from token ids to numbers"),
}


def plain(name: str, value: Any) -> Any:
    """A setting as a GenerationConfig keeps it: numbers of numpy as Python's, and sequences as tuples."""
    value = _python(value)
    if name == "eos_token_id":  # none, one or several
        several = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
        return () if value is None else tuple(map(_python, value)) if several else (value,)
    if name == "stop_strings":
        return () if value is None else (value,) if isinstance(value, str) else _tuple(value)
    if name == "bad_words_ids":
        words = () if value is None else _tuple(value)
        return tuple(map(_tuple, words)) if isinstance(words, tuple) else words
    if name == "choices":
        return _tuple(value)
    if name == "json_schema" and isinstance(value, Mapping):
        try:
            return json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"json_schema is not JSON ({error})") from None
    if name == "logit_bias" and (value is None or isinstance(value, Mapping)):
        return MappingProxyType({_python(token): _python(bias) for token, bias in (value or {}).items()})
    return value


def check(name: str, value: Any) -> None:
    """Raise InputError unless a setting, as `plain` gives it, has its type and range."""
    if name in RULES:
        _check(name, value, RULES[name])
    if name == "eos_token_id":
        for token in value:
            _check(name, token, TOKENS)
    elif name == "stop_strings":
        for string in value:
            if not isinstance(string, str) or not string:
                raise InputError(f"stop_strings: {string!r:.80}: give texts of one character or more")
    elif name == "bad_words_ids":
        for words in value:
            if not words:
                raise InputError("bad_words_ids holds an empty sequence: leave it out")
            for token in words:
                _check(name, token, WORDS)
    elif name == "logit_bias":
        for token, bias in value.items():
            _check(name, token, BIASED)
            _check(name, bias, BIAS)


def _check(name: str, value: Any, rule: Rule) -> None:
    kind, valid, meaning = rule
    kinds = (int | float) if kind is float else kind
    boolean = isinstance(value, bool) and kind not in (bool | None, bool | str)
    if boolean or not isinstance(value, kinds) or (value is not None and not valid(value)):
        raise InputError(f"{name}={value!r:.80}: give {meaning}")


def _python(value: Any) -> Any:
    """A number or an array of numpy as Python's numbers and lists."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _tuple(value: Any) -> Any:
    """A list, a tuple or an array as a tuple of Python's values; what is none of them as it is."""
    value = _python(value)
    return tuple(map(_python, value)) if isinstance(value, list | tuple) else value
