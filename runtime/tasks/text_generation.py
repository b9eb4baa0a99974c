"""text-generation: a prompt in, the text that follows it out, whole or as a stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from torchless.beams import beam_search
from torchless.bundle import Bundle
from torchless.decoder import Decoder
from torchless.errors import InputError
from torchless.generation import ROWS, Row, decode
from torchless.generation_config import GenerationConfig
from torchless.likelihood import Ending, score_endings, score_tokens
from torchless.model import Model, Settings, check_count
from torchless.reply import Reply
from torchless.sampling import check_numbers, make_sampler, softmax
from torchless.stopping import FinishReason, Patience
from torchless.tasks.multiple_choice import Choice, check_choices, choose_best
from torchless.text import TOKENIZER, check_text

Prompt = str | Sequence[int]
NORMALIZE = ("tokens", "bytes", "none")


@dataclass(frozen=True)
class Generation:
    """What was added to one prompt (with return_full_text=True, the prompt and what was added).

    finish_reason: "stop" (an end token), "length" (max_new_tokens, or the context), "stop_string", "callback",
    "deadline" or "cancelled". logprobs and top_logprobs, where asked for: the natural logarithm of each token's
    probability, and the likeliest tokens in its place, as (id, logprob).
    """

    text: str
    token_ids: list[int] = field(repr=False)
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: list[float] | None = field(default=None, repr=False)
    top_logprobs: list[list[tuple[int, float]]] | None = field(default=None, repr=False)


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


class Stream(Iterator[str]):
    """Pieces of text, as they become certain. Afterwards `result` holds the whole Generation."""

    def __init__(self, pieces: Iterator[str | Generation]) -> None:
        self._pieces = pieces
        self.result: Generation | None = None

    def __next__(self) -> str:
        for piece in self._pieces:
            if isinstance(piece, str):
                return piece
            self.result = piece
        raise StopIteration

    def close(self) -> None:
        """Stop generating; `result` stays None."""
        self._pieces.close()  # type: ignore[attr-defined]


class TextGeneration(Model):
    """Call it with a prompt, or a list of prompts: text, or token ids."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(bundle, settings)
        self._runner = Decoder(self.session, bundle)
        eos = bundle.manifest.special_tokens.get("eos")
        listed = "generation_config.json" if bundle.has("generation_config.json") else None
        self.config = GenerationConfig.read(bundle.file(listed) if listed else None, eos)

    @property
    def decoder(self) -> Decoder:
        decoder: Decoder = self.runner
        return decoder

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
        cancel: threading.Event | None = None,
        callback: Callable[[Sequence[int]], bool] | None = None,
        **settings: Any,
    ) -> Any:
        """Generate: one Generation for a prompt, a list of them for a list of prompts, in order.

        With num_return_sequences above 1 a prompt gets a list of them. settings: those of
        torchless.generation_config.GenerationConfig. batch_size: texts that are continued at once. cancel: an
        event that another thread sets to end all texts within a token. callback: called with the ids that a text
        has got so far; true ends that text.

        Raises InputError for a prompt without tokens or a wrong setting, ContextLengthError if prompt and
        max_new_tokens exceed the context, GenerationError for logits that are not numbers.
        """
        check_count("batch_size", batch_size)
        prompts, single = _prompts_of(prompt)
        config = self.config.override(settings)
        ids = [self.prompt_ids(one) for one in prompts]
        if config.num_beams > 1:
            if cancel or callback:
                raise InputError("cancel and callback follow one text as it grows: not with num_beams")
            made = [
                self._beams(one, before, config, return_full_text) for one, before in zip(prompts, ids, strict=True)
            ]
        else:
            patience = self._patience(config, cancel, callback)
            count = config.num_return_sequences
            rows, replies = self._rows([one for one in ids for _ in range(count)], config, patience)
            for _ in decode(self.decoder, rows, batch_size):
                pass
            texts = [
                self._generation(prompts[i // count], ids[i // count], reply, config, return_full_text)
                for i, reply in enumerate(replies)
            ]
            made = [texts[i : i + count] for i in range(0, len(texts), count)]
        results = made if config.num_return_sequences > 1 else [one for (one,) in made]
        return results[0] if single else results

    def stream(
        self,
        prompt: Prompt,
        *,
        return_full_text: bool = False,
        cancel: threading.Event | None = None,
        callback: Callable[[Sequence[int]], bool] | None = None,
        **settings: Any,
    ) -> Stream:
        """The same for one prompt, piece by piece: never half a character; joined they equal the whole text."""
        prompts, single = _prompts_of(prompt)
        if not single:
            raise InputError("stream takes one prompt: call the model for a list of them")
        config = self.config.override(settings)
        if config.num_beams > 1 or config.num_return_sequences > 1:
            raise InputError("stream gives one text as it grows: not with num_beams or num_return_sequences")
        ids = self.prompt_ids(prompts[0])
        # Errors come now, not with the first piece.
        rows, (reply,) = self._rows([ids], config, self._patience(config, cancel, callback))
        return Stream(self._pieces(prompts[0], ids, rows, reply, config, return_full_text))

    def next_tokens(self, prompt: Prompt, *, top: int = 5) -> list[tuple[str, float]]:
        """The likeliest next tokens with their probabilities, best first."""
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise InputError(f"top={top!r}: give a whole number of 1 or more")
        logits = self.decoder.extend(self.decoder.new_cache(), self._one(prompt))[-1]
        check_numbers(logits)
        probabilities = softmax(logits)
        best = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.tokenizer.token(int(token)), float(probabilities[token])) for token in best]

    def score(self, text: Prompt, *, stride: int | None = None) -> Score:
        """Log-probability of every token after the first.

        stride: reads a text past the context in windows, each `stride` tokens on from the last, so that every
        token is scored once, with at least context - stride tokens before it. Without it such a text is a
        ContextLengthError.
        """
        ids = self._one(text)
        logprobs = score_tokens(self.decoder, ids, stride)
        if not isinstance(text, str):
            return Score(ids[1:], logprobs)
        offsets = self.tokenizer.encode(text).offsets
        return Score(ids[1:], logprobs, offsets[1:], len(text[offsets[0][1] :].encode()))

    def choose(self, context: str, choices: Sequence[str], *, normalize: str = "tokens") -> Choice:
        """The choice that most likely follows the context; `context + choice` is read as it stands, spaces too.

        normalize: divide a choice's log-probability by its number of "tokens" or of "bytes", as longer ones are
        less likely whatever they say, or by "none". The scores are the softmax of the results over the choices.
        """
        if normalize not in NORMALIZE:
            raise InputError(f"normalize={normalize!r}: give {', '.join(NORMALIZE)}")
        check_text(context)
        given = check_choices(choices)
        scores = score_endings(self.decoder, [Ending.make(self.tokenizer, context, choice) for choice in given])
        logprobs = [float(np.sum(one)) for one in scores]
        lengths = {
            "tokens": [len(one) for one in scores],
            "bytes": [len(choice.encode()) for choice in given],
            "none": [1] * len(given),
        }
        return choose_best(np.divide(logprobs, lengths[normalize]), logprobs)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Raises InputError for one without tokens, or with ids outside the vocabulary."""
        ids = self.tokenizer.ids(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise InputError("the prompt is empty: give at least one token, such as the model's first token")
        return [int(token) for token in self.decoder.check_ids(ids)]

    def _one(self, prompt: Prompt) -> list[int]:
        prompts, single = _prompts_of(prompt)
        if not single:
            raise InputError("give one text, not a list of them")
        return self.prompt_ids(prompts[0])

    def _patience(
        self, config: GenerationConfig, cancel: threading.Event | None, callback: Callable[..., bool] | None
    ) -> Patience:
        deadline = None if config.max_time is None else time.monotonic() + config.max_time
        return Patience(deadline, cancel, callback)

    def _rows(
        self, ids: list[list[int]], config: GenerationConfig, patience: Patience
    ) -> tuple[list[Row], list[Reply]]:
        """What `decode` works on, and who listens to it: a row and a reply for each prompt."""
        self.decoder.check_ids(np.array(sorted(config.tokens()), np.int64))
        stops = frozenset(config.eos_token_id)
        readable = self.bundle.has(TOKENIZER) or config.stop_strings  # these need a text, or say that there is none
        rows, replies = [], []
        for index, prompt in enumerate(ids):
            reply = Reply(self.tokenizer if readable else None, config.stop_strings, patience)
            budget = config.budget(len(prompt), self.context_length)
            # One each, so that a seed gives the same text in every position of a batch.
            sampler = make_sampler(config, budget, index % config.num_return_sequences)
            rows.append(Row(prompt, budget, sampler, stops, reply.hear, config.logprobs))
            replies.append(reply)
        return rows, replies

    def _pieces(
        self, prompt: Prompt, ids: list[int], rows: list[Row], reply: Reply, config: GenerationConfig, full: bool
    ) -> Iterator[str | Generation]:
        if full and (shown := self._text(prompt, ids, [], full=True)):
            yield shown
        for _ in decode(self.decoder, rows):
            if piece := reply.take():
                yield piece
        yield self._generation(prompt, ids, reply, config, full)

    def _generation(
        self, prompt: Prompt, before: list[int], reply: Reply, config: GenerationConfig, full: bool
    ) -> Generation:
        text = (self._text(prompt, before, [], full=True) if full else "") + reply.text
        told = (reply.logprobs, reply.top) if config.logprobs is not None else ()
        return Generation(text, reply.ids, reply.reason, len(before), *told)

    def _beams(self, prompt: Prompt, before: list[int], config: GenerationConfig, full: bool) -> list[Generation]:
        self.decoder.check_ids(np.array(sorted(config.tokens()), np.int64))
        budget = config.budget(len(before), self.context_length)
        return [
            Generation(self._text(prompt, before, beam.ids, full), beam.ids, beam.finish_reason, len(before))
            for beam in beam_search(self.decoder, before, config, budget)
        ]

    def _text(self, prompt: Prompt, before: list[int], after: list[int], full: bool) -> str:
        if not self.bundle.has(TOKENIZER):
            return ""
        text = self.tokenizer.decode(after)
        if not full:
            return text
        return (prompt if isinstance(prompt, str) else self.tokenizer.decode(before)) + text


def _prompts_of(prompt: Any) -> tuple[list[Prompt], bool]:
    """A prompt or a list of prompts -> the list, and whether it was a single one."""
    if isinstance(prompt, str):
        return [prompt], True
    if isinstance(prompt, np.ndarray):
        prompt = prompt.tolist()
    if isinstance(prompt, list | tuple):
        if prompt and all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in prompt):
            return [list(prompt)], True
        if all(isinstance(item, str | list | tuple) for item in prompt):
            return list(prompt), False
    raise InputError(
        f"expected a prompt (text or a list of token ids) or a list of prompts, got {type(prompt).__name__}"
    )
