"""text-generation: a prompt in, the text that follows it out, whole or as a stream."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, overload

from torchless.arguments import check_count, check_flag
from torchless.beams import beam_search
from torchless.bundle import Bundle
from torchless.chat import Message, Template, fit_turns, read_template
from torchless.constrain import Vocabulary
from torchless.drafts import Drafter, drafting, speculate
from torchless.errors import InputError
from torchless.generation import ROWS, Row, Token, decode, report
from torchless.generation_config import GenerationConfig
from torchless.language_model import LanguageModel
from torchless.log import log
from torchless.providers.first import Settings
from torchless.reply import Generation, Reply, Stream
from torchless.sampling import make_sampler
from torchless.state import LastState, State, bundle_hash, check_state, load_state
from torchless.stopping import Patience
from torchless.text import TOKENIZER, Prompt, prompts_of


class TextGeneration(LanguageModel):
    """Call it with a prompt, or a list of prompts: text, or token ids."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(bundle, settings)
        eos = bundle.manifest.special_tokens.get("eos")
        listed = "generation_config.json" if bundle.has("generation_config.json") else None
        self.config = GenerationConfig.read(bundle.file(listed) if listed else None, eos)
        self._last = LastState()  # of a conversation

    @overload
    def __call__(self, prompt: str, *, return_full_text: bool = ..., **settings: Any) -> Generation: ...
    @overload
    def __call__(self, prompt: list[str], *, return_full_text: bool = ..., **settings: Any) -> list[Generation]: ...
    @overload
    def __call__(
        self, prompt: Sequence[Any], *, return_full_text: bool = ..., **settings: Any
    ) -> Generation | list[Generation]: ...

    def __call__(
        self,
        prompt: Any,
        *,
        return_full_text: bool = False,
        batch_size: int = ROWS,
        state: State | None = None,
        assistant_model: TextGeneration | None = None,
        cancel: threading.Event | None = None,
        callback: Callable[[Sequence[int]], bool] | None = None,
        progress: Callable[[int, int], object] | None = None,
        **settings: Any,
    ) -> Any:
        """Generate: one Generation for a prompt, a list of them for a list of prompts, in order.

        With num_return_sequences above 1 a prompt gets a list of them. settings: those of
        torchless.generation_config.GenerationConfig. batch_size: texts that are continued at once. state: what a
        prompt shares with it is not computed again (torchless.State). assistant_model: a smaller model of the same
        vocabulary, which guesses tokens that this one checks together. cancel: an event that another thread sets
        to end all texts within a token. callback: called with the ids that a text has got so far; true ends that
        text. progress: called with every chunk of 256 tokens: how many tokens of the prompts were read, and how
        many there are; where overflow="slide" reads a window again, those of the window.

        Raises InputError for a prompt without tokens or a wrong setting, ContextLengthError if prompt and
        max_new_tokens exceed the context, GenerationError for logits that are not numbers.
        """
        check_count("batch_size", batch_size)
        check_flag("return_full_text", return_full_text)
        prompts, single = prompts_of(prompt)
        config = self.config.override(settings, assisted=assistant_model is not None)
        drafts = drafting(config, self, assistant_model)
        ids = [self.prompt_ids(one) for one in prompts]
        if state is not None and not (single and config.grows):
            raise InputError(
                "a state follows one text: give one prompt, without num_beams and num_return_sequences"
            )
        if config.num_beams > 1:
            if cancel is not None or callback is not None or progress is not None:
                raise InputError("cancel, callback and progress follow a text as it grows: not with num_beams")
            made = [
                self._beams(one, before, config, return_full_text) for one, before in zip(prompts, ids, strict=True)
            ]
        else:
            patience = Patience.within(config.max_time, cancel, callback)
            count = config.num_return_sequences
            rows, replies = self.rows([one for one in ids for _ in range(count)], config, patience, progress)
            for _ in self._decode(rows, batch_size, state, drafts):
                pass
            _tell_short(config, replies)
            texts = [
                self._generation(prompts[i // count], row, reply, config, return_full_text)
                for i, (row, reply) in enumerate(zip(rows, replies, strict=True))
            ]
            made = [texts[i : i + count] for i in range(0, len(texts), count)]
        results = made if config.num_return_sequences > 1 else [one for (one,) in made]
        return results[0] if single else results

    def stream(
        self,
        prompt: Prompt,
        *,
        return_full_text: bool = False,
        state: State | None = None,
        assistant_model: TextGeneration | None = None,
        cancel: threading.Event | None = None,
        callback: Callable[[Sequence[int]], bool] | None = None,
        progress: Callable[[int, int], object] | None = None,
        **settings: Any,
    ) -> Stream:
        """The same for one prompt, piece by piece: never half a character; joined they equal the whole text."""
        check_flag("return_full_text", return_full_text)
        prompts, single = prompts_of(prompt)
        if not single:
            raise InputError("stream takes one prompt: call the model for a list of them")
        config = self.config.override(settings, assisted=assistant_model is not None)
        if not config.grows:
            raise InputError("stream gives one text as it grows: not with num_beams or num_return_sequences")
        ids = self.prompt_ids(prompts[0])
        # Errors come now, not with the first piece.
        rows, (reply,) = self.rows([ids], config, Patience.within(config.max_time, cancel, callback), progress)
        tokens = self._decode(rows, 1, state, drafting(config, self, assistant_model))
        return Stream(self._pieces(prompts[0], rows[0], tokens, reply, config, return_full_text))

    def chat(self, messages: Sequence[Message], **settings: Any) -> Generation:
        """The assistant's answer to a conversation: a list of {"role": ..., "content": ...}, the newest last.

        Roles and their form are those of the bundle's chat template (it needs torchless[chat]), or else "system",
        "user" and "assistant", written as `User:` and `Assistant:`. The answer ends where the next one would
        speak. Where the context has no room, the oldest turns are left out, but for the system's. What a
        conversation shares with the last one is not computed again; for several side by side, give each a state.
        settings: those of a call.

        Raises InputError for messages that are no conversation, ContextLengthError if the newest does not fit.
        """
        stream = self.stream_chat(messages, **settings)
        for _ in stream:
            pass
        assert stream.result is not None
        return stream.result

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        state: State | None = None,
        cancel: threading.Event | None = None,
        callback: Callable[[Sequence[int]], bool] | None = None,
        progress: Callable[[int, int], object] | None = None,
        **settings: Any,
    ) -> Stream:
        """The same, piece by piece."""
        config = self.config.override(settings)
        if not config.grows:
            raise InputError("a conversation has one answer: not with num_beams or num_return_sequences")
        if config.prompt_lookup_num_tokens:
            raise InputError("prompt_lookup_num_tokens: not in a conversation, which keeps a state")
        config = self.template.end(config)
        ids = fit_turns(messages, self.template, self.tokenizer, config, self.context_length)
        rows, (reply,) = self.rows([ids], config, Patience.within(config.max_time, cancel, callback), progress)
        check_state(state, self.bundle)  # now, not with the first piece
        return Stream(self.template.trim(self._answer(ids, rows, reply, config, state)))

    @functools.cached_property
    def template(self) -> Template:
        """How conversations are written for this model."""
        return read_template(self.bundle, self.tokenizer)

    def state(self, prompt: Prompt | None = None) -> State:
        """A State that has read this prompt, or nothing yet."""
        made = State(bundle_hash(self.bundle.manifest), self.decoder.new_cache())
        if prompt is not None:
            made.read(self.decoder, self._one(prompt))
        return made

    def load_state(self, path: str | os.PathLike[str]) -> State:
        """What State.save wrote. InputError for a file that is damaged, or of another bundle."""
        return load_state(path, self.decoder, bundle_hash(self.bundle.manifest))

    def close(self) -> None:
        super().close()
        self._last.clear()

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """What the tokens write, for constraints."""
        return Vocabulary(self.tokenizer, self.decoder.vocab_size)

    def rows(
        self,
        ids: list[list[int]],
        config: GenerationConfig,
        patience: Patience,
        progress: Callable[[int, int], object] | None = None,
    ) -> tuple[list[Row], list[Reply]]:
        """What a Batch continues, and who listens to it: a row and a reply for each prompt.

        Prompts are checked ids. With num_return_sequences, as many in turn are draws of one: each has its own.
        """
        config.check_tokens(self.decoder.vocab_size)
        constraint = self.vocabulary.constraint(config) if config.constraints else None
        stops = frozenset(config.eos_token_id if constraint is None else constraint.ends)
        readable = self.bundle.has(TOKENIZER) or config.stop_strings  # these need a text, or say that there is none
        rows, replies = [], []
        for index, prompt in enumerate(ids):
            reply = Reply(self.tokenizer if readable else None, config.stop_strings, patience)
            budget = config.budget(len(prompt), self.context_length)
            keep = config.keep if config.slides else None
            # One each, so that a seed gives the same text in every position of a batch.
            form = None if constraint is None else constraint.fork()
            sampler = make_sampler(config, budget, index % config.num_return_sequences, form)
            row = Row(prompt, budget, sampler, stops, reply.hear, config.logprobs, keep)
            if form is not None:
                row.complete = form.complete
            rows.append(row)
            replies.append(reply)
        if progress is not None:
            if not callable(progress):
                raise InputError(
                    f"progress is a {type(progress).__name__}: give a function of two counts of tokens"
                )
            report(rows, progress, self.context_length)
        return rows, replies

    def _decode(
        self, rows: list[Row], together: int, state: State | None, drafts: Callable[[], Drafter] | None = None
    ) -> Iterator[Token]:
        check_state(state, self.bundle)
        if drafts is not None and state is not None:
            raise InputError("prompt_lookup_num_tokens and assistant_model: not with a state")
        if drafts is not None:
            return speculate(self.decoder, rows, drafts)
        return decode(self.decoder, rows, together) if state is None else state.follow(self.decoder, rows[0])

    def _answer(
        self, ids: list[int], rows: list[Row], reply: Reply, config: GenerationConfig, state: State | None
    ) -> Iterator[str | Generation]:
        with self._last.lent(self.state) if state is None else nullcontext(state) as held:
            yield from self._pieces(ids, rows[0], self._decode(rows, 1, held), reply, config)

    def _pieces(
        self,
        prompt: Prompt,
        row: Row,
        tokens: Iterator[Token],
        reply: Reply,
        config: GenerationConfig,
        full: bool = False,
    ) -> Iterator[str | Generation]:
        if full and (shown := self._text(prompt, row.prompt, [], full=True)):
            yield shown
        for _ in tokens:
            if piece := reply.take():
                yield piece
        if piece := reply.take():  # of a text that has ended while a window was read
            yield piece
        _tell_short(config, [reply])
        yield self._generation(prompt, row, reply, config, full)

    def _generation(
        self, prompt: Prompt, row: Row, reply: Reply, config: GenerationConfig, full: bool
    ) -> Generation:
        text = (self._text(prompt, row.prompt, [], full=True) if full else "") + reply.text
        logprobs, top = (None, None) if config.logprobs is None else (reply.logprobs, reply.top)
        return Generation(text, reply.ids, reply.reason, len(row.prompt), logprobs, top, row.speculation)

    def _beams(self, prompt: Prompt, before: list[int], config: GenerationConfig, full: bool) -> list[Generation]:
        config.check_tokens(self.decoder.vocab_size)
        budget = config.budget(len(before), self.context_length)
        return [
            Generation(self._text(prompt, before, beam.ids, full), beam.ids, beam.finish_reason, len(before))
            for beam in beam_search(self.decoder, before, config, budget)
        ]

    def _text(self, prompt: Prompt, before: Sequence[int], after: Sequence[int], full: bool) -> str:
        if not self.bundle.has(TOKENIZER):
            return ""
        text = self.tokenizer.decode(after)
        if not full:
            return text
        return (prompt if isinstance(prompt, str) else self.tokenizer.decode(before)) + text


def _tell_short(config: GenerationConfig, replies: Sequence[Reply]) -> None:
    """Say, once a call, that a form was complete where min_new_tokens lets no text end."""
    short = (len(reply.ids) < config.min_new_tokens for reply in replies if reply.reason == "stop")
    if config.constraints and any(short):
        told = "%s: complete before min_new_tokens=%d, which is ignored: nothing can follow"
        log.warning(told, config.constraints[0], config.min_new_tokens)
