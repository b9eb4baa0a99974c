"""Conversations: how messages become a prompt, where an answer ends, and which turns fit the context."""

from __future__ import annotations

import datetime
import functools
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from torchless.bundle import Bundle
from torchless.errors import BundleError, InputError
from torchless.generation_config import DEFAULT_NEW_TOKENS, GenerationConfig
from torchless.log import log
from torchless.reply import Generation
from torchless.text import Tokenizer, check_text

CHAT_TEMPLATE = "chat_template.jinja"
INSTALL = 'this bundle\'s chat template needs jinja2 3.1.6 or newer: pip install "torchless[chat]"'
SAFE = (3, 1, 6)  # what templates of strangers escape from before
NAMES = {"user": "User", "assistant": "Assistant"}  # of the speakers, where a bundle has no template

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message], bool], str]  # messages, and whether the assistant begins to speak after them


@dataclass(frozen=True)
class Template:
    """How conversations are written for a model, and what comes where the next one would speak.

    own: the bundle brings it, with its special tokens; the plain one is a text like any other. ends, stops: token
    ids and strings that end an answer.
    """

    render: Render
    own: bool = False
    ends: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()

    def ids(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        return tokenizer.ids(self.render(messages, True), special_tokens=not self.own)

    def end(self, config: GenerationConfig) -> GenerationConfig:
        """The same settings, with the ends of an answer."""
        eos = dict.fromkeys((*config.eos_token_id, *self.ends))
        return replace(config, eos_token_id=tuple(eos), stop_strings=(*config.stop_strings, *self.stops))

    def trim(self, pieces: Iterator[str | Generation]) -> Iterator[str | Generation]:
        """An answer without the space that parts it from a plain `Assistant:`."""
        begun = self.own
        for piece in pieces:
            if isinstance(piece, Generation):
                yield piece if self.own else replace(piece, text=piece.text.lstrip())
            elif shown := piece if begun else piece.lstrip():
                begun = True
                yield shown


def read_template(bundle: Bundle, tokenizer: Tokenizer) -> Template:
    """The bundle's, or the plain one. BundleError for one that is no template, InputError without jinja2.

    Where the manifest has the template's form, jinja2 is asked for only by roles that the form does not know.
    """
    form = bundle.manifest.chat
    if not bundle.has(CHAT_TEMPLATE):
        render: Render = plain
    elif form is None:
        render = read_jinja(bundle, tokenizer)
    else:
        whole = functools.cache(lambda: read_jinja(bundle, tokenizer))

        def render(messages: Sequence[Message], answer: bool) -> str:
            return form.render(messages, answer) if form.knows(messages) else whole()(messages, answer)

    return Template(render, bundle.has(CHAT_TEMPLATE), *turn_end(render, tokenizer))


def read_jinja(bundle: Bundle, tokenizer: Tokenizer) -> Render:
    path = bundle.file(CHAT_TEMPLATE)
    special = special_texts(bundle.manifest.special_tokens, tokenizer.fast)
    try:
        return compile_template(path.read_text(encoding="utf-8"), special)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise BundleError(f"{path} is not a chat template: {error}") from None


def special_texts(ids: Mapping[str, int | list[int]], tokenizer: FastTokenizer) -> dict[str, str]:
    """The special tokens by the names that templates have for them: `bos_token` and so on."""
    return {
        f"{role}_token": tokenizer.id_to_token(found[0] if isinstance(found, list) else found) or ""
        for role, found in ids.items()
        if found != []
    }


def plain(messages: Sequence[Message], answer: bool) -> str:
    """`User:` and `Assistant:` on lines of their own; what the system says stands before them as it is."""
    lines = []
    for message in messages:
        role, content = message["role"], message["content"].strip()
        if role != "system" and role not in NAMES:
            raise InputError(f"role {role!r}: without a chat template there are system, user and assistant")
        lines.append(content + "\n" if role == "system" else f"{NAMES[role]}: {content}")
    return "\n".join(lines) + ("\nAssistant:" if answer else "")


def chat_templates() -> Any:
    """jinja2's environment as transformers makes it: a sandbox. InputError where jinja2 is missing or too old."""
    try:
        import jinja2.ext
        import jinja2.nodes
        import jinja2.sandbox
    except ImportError:
        raise InputError(INSTALL) from None
    if tuple(int(part) for part in re.findall(r"\d+", jinja2.__version__)[:3]) < SAFE:
        raise InputError(INSTALL)

    class Marked(jinja2.ext.Extension):
        """`{% generation %}`, by which training finds the assistant's words, changes nothing here."""

        tags = {"generation"}  # noqa: RUF012  (as its base declares it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return jinja2.nodes.Scope(
                parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line
            )

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # Jinja's own would escape HTML

    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Marked, jinja2.ext.loopcontrols]
    )
    sandbox.filters["tojson"] = to_json
    sandbox.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    return sandbox


def compile_template(source: str, special: Mapping[str, str]) -> Render:
    """A Jinja template as transformers runs it, with the special tokens as bos_token and so on.

    Raises ValueError for what is no template, and InputError where jinja2 is missing; the result raises InputError
    for messages that the template refuses.
    """
    sandbox = chat_templates()
    import jinja2

    try:
        template = sandbox.from_string(source)
    except jinja2.TemplateError as error:
        raise ValueError(str(error)) from None

    def render(messages: Sequence[Message], answer: bool) -> str:
        try:
            written: str = template.render(
                messages=[dict(one) for one in messages], add_generation_prompt=answer, **special
            )
        except Exception as error:  # a template can raise anything
            raise InputError(f"the chat template refuses these messages: {error}") from None
        return written

    return render


def turn_end(render: Render, tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(token ids, strings) that end an answer: what the template writes between it and the next user's words."""
    said, next_said = "torchless-said", "torchless-next"
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": said})
    try:
        text = render([*turns, {"role": "user", "content": next_said}], False)
    except InputError:  # it wants other messages than these
        return (), ()
    between = text.partition(said)[2].partition(next_said)[0]
    added = tokenizer.fast.get_added_tokens_decoder()
    for token in tokenizer.ids(between, special_tokens=False):
        if token in added:
            return (token,), ()
    return (), ((between.rstrip() or between),) if between.rstrip() or "\n" in between else ()


def fit_turns(
    messages: Sequence[Message], template: Template, tokenizer: Tokenizer, config: GenerationConfig, context: int
) -> list[int]:
    """The prompt of a conversation, without its oldest turns where the context has no room for them and an answer.

    An answer wants max_new_tokens, by default 128 or a quarter of the context. What the system says at first stays,
    and a turn goes as a whole, so that the rest begins with a user.
    """
    given = check_messages(messages)
    ahead = next((i for i, message in enumerate(given) if message["role"] != "system"), len(given))
    starts = sorted({ahead, *(i for i in range(ahead, len(given)) if given[i]["role"] == "user")})
    wanted = config.max_new_tokens
    if wanted is None:
        wanted = min(DEFAULT_NEW_TOKENS, context // 4)

    def written(start: int) -> list[int]:
        return template.ids(tokenizer, [*given[:ahead], *given[start:]])

    def fits(start: int) -> bool:
        return len(written(start)) + wanted <= context

    first = 0 if fits(starts[0]) else bisect_left(starts, True, lo=1, key=fits)
    start = starts[min(first, len(starts) - 1)]
    if start > ahead:
        log.info("the context has no room for the first %d messages: left out", start - ahead)
    return written(start)


def check_messages(messages: object) -> list[Message]:
    """The messages of a conversation, or an InputError that says what is none."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise InputError('a conversation is a list of {"role": ..., "content": ...}, with one at least')
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f'{message!r} is no message: give {{"role": ..., "content": ...}}')
        check_text(message.get("content"), "content")
    if messages[-1]["role"] == "assistant":
        raise InputError("the assistant has said the last word: end with a user's message")
    return list(messages)
