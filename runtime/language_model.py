"""What a GPT knows of a text: which tokens come next, how likely it is, which ending suits it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchless.arguments import check_count, check_name
from torchless.bundle import Bundle
from torchless.decoder import Decoder
from torchless.errors import InputError
from torchless.likelihood import Ending, Score, score_endings, score_tokens
from torchless.model import Model
from torchless.providers.first import Settings
from torchless.sampling import check_numbers, softmax
from torchless.tasks.multiple_choice import Choice, check_choices, choose_best
from torchless.text import Prompt, check_text, prompts_of

NORMALIZE = ("tokens", "bytes", "none")


class LanguageModel(Model):
    """A decoder that gives a probability to every token of its vocabulary, after any text."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(bundle, settings)
        self._runner = Decoder(self.session, bundle)

    @property
    def decoder(self) -> Decoder:
        decoder: Decoder = self.runner
        return decoder

    def next_tokens(self, prompt: Prompt, *, top: int = 5) -> list[tuple[str, float]]:
        """The likeliest next tokens with their probabilities, best first."""
        top = check_count("top", top)
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
        check_name("normalize", normalize, NORMALIZE)
        check_text(context)
        given = check_choices(choices)
        scores = score_endings(self.decoder, [Ending.make(self.tokenizer, context, choice) for choice in given])
        logprobs = [float(np.sum(one)) for one in scores]
        lengths = {"tokens": [len(one) for one in scores], "bytes": [len(choice.encode()) for choice in given]}
        return choose_best(np.divide(logprobs, lengths.get(normalize, 1)), logprobs)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Raises InputError for one without tokens, or with ids outside the vocabulary."""
        ids = self.tokenizer.ids(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise InputError("the prompt is empty: give at least one token, such as the model's first token")
        return [int(token) for token in self.decoder.check_ids(ids)]

    def _one(self, prompt: Prompt) -> list[int]:
        prompts, single = prompts_of(prompt)
        if not single:
            raise InputError("give one text, not a list of them")
        return self.prompt_ids(prompts[0])
