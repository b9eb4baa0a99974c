"""What a request for text asks: OpenAI's fields as settings of a generation (docs/serve.md has the table)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torchless.errors import ContextLengthError, TorchlessError
from torchless.generation_config import GenerationConfig
from torchless.serve.fields import Fields
from torchless.serve.request_error import RequestError, of_error
from torchless.tasks.text_generation import TextGeneration
from torchless.text import check_text

MOST_TEXTS = 128  # of one request, as OpenAI's n
MOST_STOPS = 4
MOST_TOKENS = 2**31 - 1  # what fits is known when the prompt is
SEEDS = 2**64
COMPLETION_TOKENS = 16  # OpenAI's default
LEGACY_TOP, CHAT_TOP = 5, 20  # of the likeliest tokens, at most
# Settings of torchless that OpenAI does not have: they may be given under their own names.
OWN = ("top_k", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size", "regex", "choices")
SINGLE = {"num_beams": 1, "num_return_sequences": 1, "prompt_lookup_num_tokens": None}  # whatever the bundle says
DRAWS = ("top_k", "min_p", "typical_p")  # of OWN: what only a draw reads
TOOLS = "torchless has no tools: leave it out"
NOT_HERE = "not implemented: leave it out"
# Fields that change nothing in the answer: who asks, and what OpenAI's caches go by.
NAMES = ("user", "safety_identifier", "prompt_cache_key")
# Fields of OpenAI's that are not implemented, with the values that change nothing.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), NOT_HERE),
    "audio": ((), "answers are text: leave it out"),
    "modalities": ((["text"],), 'answers are text: give ["text"]'),
    "functions": (([],), TOOLS),
    "function_call": (("none",), TOOLS),
    "tools": (([],), TOOLS),
    "tool_choice": (("none",), TOOLS),
    "parallel_tool_calls": ((), TOOLS),
    "web_search_options": ((), NOT_HERE),
    "prediction": ((), NOT_HERE),
    "moderation": ((), NOT_HERE),
    "reasoning_effort": (("none",), NOT_HERE),
    "verbosity": (("medium",), NOT_HERE),
    "service_tier": (("auto", "default"), NOT_HERE),
    "store": ((False,), "nothing is stored here: leave it out"),
    "metadata": (({},), "nothing is stored here: leave it out"),
    "prompt_cache_options": (({},), NOT_HERE),
    "prompt_cache_retention": ((), NOT_HERE),
}


@dataclass(frozen=True)
class Asked:
    """A request for text, as far as it can be read without the model's tokenizer.

    settings: of GenerationConfig. count: texts for each prompt, of `best_of` that are made. top: how many of the
    likeliest tokens come with each token, None for none.
    """

    prompt: Any
    settings: dict[str, Any]
    count: int
    best_of: int
    max_tokens: int | None
    top: int | None
    stream: bool
    usage: bool  # in a stream, too
    echo: bool = False
    field: str = "prompt"
    max_field: str = "max_tokens"

    @property
    def texts(self) -> int:
        """How many have to be made."""
        return self.best_of * (len(self.prompt) if isinstance(self.prompt, list) else 1)

    def refused(self, error: TorchlessError) -> RequestError:
        """An error of a setting, in the words of the request's fields."""
        message = str(error).replace("max_new_tokens", self.max_field).replace("stop_strings", "stop")
        message = message.replace(", or pass overflow='slide'", "")
        found = of_error(error)
        known = {self.max_field, "stop", "logit_bias", "json_schema", *OWN}
        param = next(
            (name for name in re.findall(r"\b[a-z_]+(?==| holds|:| cannot)", message) if name in known), None
        )
        if param is None and isinstance(error, ContextLengthError):
            param = self.field
        param = "response_format" if param == "json_schema" else param
        return RequestError(found.status, message, param=param, code=found.code)

    def config(self, model: TextGeneration, prompts: list[list[int]]) -> GenerationConfig:
        """The settings, with the model's own as defaults. TorchlessError for those that cannot be met."""
        limit = self.max_tokens
        if limit is None:  # as long as the context allows, and an error where it allows nothing
            limit = max(1, model.context_length - max(map(len, prompts)))
        logprobs = self.top if self.top is not None else 0 if self.best_of > self.count else None
        given: dict[str, Any] = SINGLE | self.settings | {"max_new_tokens": limit, "logprobs": logprobs}
        if given.get("temperature") is None and given.get("do_sample") is None:
            given["do_sample"] = True
        config = model.config.override(given)
        for prompt in prompts:
            config.budget(len(prompt), model.context_length)
        return replace(config, num_return_sequences=self.best_of)  # after override, which knows no equal texts


def completion(fields: Fields) -> Asked:
    """What POST /v1/completions asks."""
    prompt = fields.take("prompt")
    if prompt is None:
        raise fields.wrong("prompt", "missing: give a text, or a list of texts or token ids")
    prompts = listed(fields, prompt)
    count = fields.count("n", 1, 1, MOST_TEXTS)
    best_of = fields.count("best_of", count, 1, MOST_TEXTS)
    if best_of < count:
        raise fields.wrong("best_of", f"give n={count} or more", best_of)
    stream, usage = streaming(fields)
    if stream and best_of > count:
        raise fields.wrong("best_of", "which is best is known at the end: not with stream", best_of)
    top = fields.count("logprobs", None, 0, LEGACY_TOP)
    echo = fields.flag("echo")
    if echo and top is not None:
        raise RequestError(
            400, "echo: the prompt's log-probabilities are not implemented: not with logprobs", param="echo"
        )
    limit = fields.count("max_tokens", COMPLETION_TOKENS, 0, MOST_TOKENS)
    settings = sampling(fields)
    ignore(fields)
    return Asked(prompts, settings, count, best_of, limit, top, stream, usage, echo)


def chat(fields: Fields) -> Asked:
    """What POST /v1/chat/completions asks."""
    messages = conversation(fields)
    count = fields.count("n", 1, 1, MOST_TEXTS)
    stream, usage = streaming(fields)
    wanted = fields.flag("logprobs")
    top = fields.count("top_logprobs", None, 0, CHAT_TOP)
    if top is not None and not wanted:
        raise fields.wrong("top_logprobs", "give logprobs: true with it", top)
    old = fields.count("max_tokens", None, 0, MOST_TOKENS)
    limit = fields.count("max_completion_tokens", None, 0, MOST_TOKENS)
    if None not in (old, limit) and old != limit:
        raise fields.wrong("max_tokens", "give max_completion_tokens, or this one", old)
    settings = sampling(fields) | form(fields)
    ignore(fields)
    name = "max_tokens" if limit is None else "max_completion_tokens"
    limit = old if limit is None else limit
    top = (top or 0) if wanted else None
    return Asked(messages, settings, count, count, limit, top, stream, usage, field="messages", max_field=name)


def listed(fields: Fields, prompt: Any) -> list[Any]:
    """The prompts of a completion, each a text or a list of whole numbers."""

    def ids(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)

    prompts = [prompt] if isinstance(prompt, str) or ids(prompt) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) or ids(one) for one in prompts):
        raise fields.wrong("prompt", "give a text, a list of token ids, or a list of either", prompt)
    if len(prompts) > MOST_TEXTS:
        raise fields.wrong("prompt", f"give {MOST_TEXTS} prompts at most")
    return prompts


def streaming(fields: Fields) -> tuple[bool, bool]:
    """(stream, include_usage)"""
    stream = fields.flag("stream")
    options = fields.object("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise fields.wrong("stream_options", "give stream: true with it")
    usage = options.flag("include_usage")
    options.neutral("include_obfuscation", False, why="not implemented: give false")
    options.end()
    return stream, usage


def sampling(fields: Fields) -> dict[str, Any]:
    """How tokens are chosen, and where a text ends."""
    temperature = fields.number("temperature", None, 0, 2)
    top_p = fields.number("top_p", None, 0, 1)
    seed = fields.count("seed", None, -SEEDS, SEEDS)
    found: dict[str, Any] = {
        "presence_penalty": fields.number("presence_penalty", None, -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", None, -2, 2),
        "stop_strings": fields.texts("stop", MOST_STOPS) or None,
        "logit_bias": biases(fields),
        **{name: fields.take(name) for name in OWN},
    }
    if temperature == 0 or top_p == 0:  # the likeliest token: what only a draw reads changes nothing
        found |= {"temperature": 0.0, "do_sample": False} | dict.fromkeys(DRAWS)
    else:
        found |= {
            "temperature": temperature,
            "top_p": top_p,
            "seed": None if seed is None else seed % SEEDS,
            "do_sample": None if temperature is None else True,
        }
    return {name: value for name, value in found.items() if value is not None}


def biases(fields: Fields) -> dict[int, float] | None:
    given = fields.take("logit_bias")
    if given is None:
        return None
    if not isinstance(given, dict) or not all(
        name.isascii() and name.isdecimal() and len(name) < 10
        and not isinstance(bias, bool) and isinstance(bias, int | float) and abs(bias) <= 100
        for name, bias in given.items()
    ):  # fmt: skip
        raise fields.wrong(
            "logit_bias", "give an object of token ids, as texts, with numbers from -100 to 100", given
        )
    return {int(name): float(bias) for name, bias in given.items()}


def form(fields: Fields) -> dict[str, Any]:
    """response_format as a constraint."""
    given = fields.object("response_format")
    if given is None:
        return {}
    kind = given.text("type", among=("text", "json_object", "json_schema"))
    if kind is None:
        raise given.wrong("type", "missing: give text, json_object or json_schema")
    found: dict[str, Any] = {"json_schema": {"type": "object"}} if kind == "json_object" else {}
    if kind == "json_schema":
        wrapped = given.object("json_schema")
        schema = None if wrapped is None else wrapped.take("schema")
        if wrapped is None or not isinstance(schema, dict):
            raise given.wrong("json_schema", 'give {"name": ..., "schema": {...}}')
        wrapped.text("name", most=64)
        wrapped.text("description")
        wrapped.flag("strict")  # it always is
        wrapped.end()
        found["json_schema"] = json.dumps(schema)
    given.end()
    return found


def ignore(fields: Fields) -> None:
    """Take what changes no answer, and refuse what is not implemented or not known."""
    for name in NAMES:
        fields.text(name)
    for name, (values, why) in REFUSED.items():
        fields.neutral(name, *values, why=why)
    fields.end()


ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def conversation(fields: Fields) -> list[Mapping[str, str]]:
    """The messages, each a role and a text."""
    given = fields.take("messages")
    if not isinstance(given, list) or not given:
        raise fields.wrong("messages", 'give a list of {"role": ..., "content": ...}', given)
    found: list[Mapping[str, str]] = []
    for place, message in enumerate(given):
        if not isinstance(message, dict):
            raise fields.wrong(f"messages[{place}]", 'give {"role": ..., "content": ...}', message)
        one = Fields(message, f"messages[{place}].")
        role, content = one.text("role", among=ROLES), one.take("content")
        if role is None:
            raise one.wrong("role", f"missing: give {', '.join(ROLES)}")
        for name in ("tool_calls", "annotations"):  # as an answer that is sent back has them
            one.neutral(name, [], why=TOOLS)
        one.end()
        found.append({"role": ROLES[role], "content": said(one, content)})
    return found


def said(message: Fields, content: Any) -> str:
    """The text of a message: a text, or parts that are texts."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise message.wrong("content", 'give a text, or a list of {"type": "text", "text": ...}', content)
        texts.append(part["text"])
    if not texts:
        raise message.wrong("content", "give a text", content)
    try:
        return check_text("".join(texts))
    except TorchlessError as error:
        raise message.wrong("content", str(error)) from None
