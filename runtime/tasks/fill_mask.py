"""fill-mask: a text with mask tokens in, the likeliest words for each of them out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.arguments import check_count, check_name
from torchless.batching import BATCH_SIZE, Batching
from torchless.bundle import Bundle
from torchless.encoder import Encoder
from torchless.errors import BundleError, ContextLengthError, InputError
from torchless.manifest import EXPORT_AGAIN
from torchless.model import Fit, Model, texts_of
from torchless.providers.first import Settings
from torchless.sampling import check_numbers, log_softmax
from torchless.text import Text, check_length, check_text

Float = npt.NDArray[np.float32]
Target = tuple[int, ...]  # the tokens of a word
Scores = list[tuple[Target, float]]


@dataclass(frozen=True)
class Candidate:
    """One word for one mask: its probability, and the whole text with it filled in.

    token_id: the first of token_ids, which are several only for targets with multi_token="score".
    """

    token: str
    token_id: int
    score: float
    sequence: str
    token_ids: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Masked:
    """A text's ids, and where its masks are."""

    ids: list[int]
    type_ids: list[int]
    masks: list[int]

    def widened(self, mask: int, count: int) -> Masked:
        """`count` masks in place of the one at position `mask`; only those are its masks."""
        ids, types = (row[:mask] + [row[mask]] * count + row[mask + 1 :] for row in (self.ids, self.type_ids))
        return Masked(ids, types, list(range(mask, mask + count)))

    def filled(self, mask: int, target: Target) -> list[int]:
        return self.ids[:mask] + list(target) + self.ids[mask + 1 :]


class FillMask(Model):
    """Call it with a text that holds the tokenizer's mask token ([MASK] for BERT), or a list of texts."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(bundle, settings)
        mask = bundle.manifest.special_tokens.get("mask")
        if not isinstance(mask, int):
            raise BundleError(f"{bundle.path}: the manifest names no mask token: {EXPORT_AGAIN}")
        self.mask_token_id = mask
        self._runner = Encoder(self.session, bundle, "logits")

    @property
    def mask_token(self) -> str:
        return self.tokenizer.fast.id_to_token(self.mask_token_id) or ""

    def __call__(
        self,
        texts: Any,
        *,
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
        multi_token: str = "refuse",
        batch_size: int = BATCH_SIZE,
        cancel: threading.Event | None = None,
        progress: Callable[[int, int], object] | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        truncation_side: str = "right",
    ) -> list[Any]:
        """The top_k candidates for a text's mask, best first; a list of such lists if it has several masks.

        For a list of texts, a list of these in order. Raises InputError for a text without a mask.

        targets: a word, or several, to score instead of the whole vocabulary. multi_token: what to do with one
        that is several tokens: "refuse" it, with an InputError that names them (transformers takes its first
        token), or "score" it: as many masks as it has tokens stand in the mask's place, and its score is the
        geometric mean of the probabilities of its tokens, which for a single token is its probability.
        truncation, max_length, truncation_side: as in torchless.model.Fit.
        """
        top_k = check_count("top_k", top_k)
        check_name("multi_token", multi_token, ("refuse", "score"))
        wanted = None if targets is None else self._targets(targets, multi_token)
        fit = Fit(truncation, max_length, truncation_side)
        given, single = texts_of(texts)
        batching = self.batching(batch_size, cancel, progress)

        def answer(part: Sequence[Any]) -> list[Any]:
            masked = [self._masked(text, fit) for text in batching.each(part)]
            found = self._score(masked, wanted, top_k, batching)
            return [self._fill(one, masks, top_k) for one, masks in zip(masked, found, strict=True)]

        results = batching.answers(given, answer)
        return results[0] if single else results

    def _masked(self, text: Any, fit: Fit) -> Masked:
        try:
            encoding = self.encode(text, fit)
        except ContextLengthError as error:
            raise self._too_long(text, fit) or error from None
        masks = [i for i, token in enumerate(encoding.ids) if token == self.mask_token_id]
        if not masks and self.mask_token_id in self.tokenizer.encode(text).ids:
            other = "left" if fit.truncation_side == "right" else "right"
            raise InputError(
                f"truncation cuts the {self.mask_token} off {str(text)[:60]!r}: pass truncation_side={other!r}, or "
                "shorten the text"
            )
        if not masks:
            raise InputError(f"no {self.mask_token} in {str(text)[:60]!r}: mark the word to fill in with it")
        return Masked(encoding.ids, encoding.type_ids, masks)

    def _too_long(self, text: Text, fit: Fit) -> ContextLengthError | None:
        """What to say of a text whose masks alone are too many: to cut it would lose some of them."""
        masks, limit = self.tokenizer.encode(text).ids.count(self.mask_token_id), fit.limit(self.context_length)
        room = limit - self.tokenizer.fast.num_special_tokens_to_add(isinstance(text, tuple))
        if masks <= room:
            return None
        return ContextLengthError(
            f"the text has {masks:,} masks, and {room:,} tokens fit beside the special ones: give fewer masks"
        )

    def _targets(self, targets: Any, multi_token: str) -> list[Target]:
        """The tokens of each word, or InputError for one that the vocabulary lacks or splits."""
        words = [targets] if isinstance(targets, str) else targets
        if not isinstance(words, list | tuple) or not words:
            raise InputError(f"targets={targets!r}: give a word or a list of words")
        found: set[Target] = set()
        for word in words:
            whole = self.tokenizer.fast.token_to_id(check_text(word))
            ids = self.tokenizer.ids(word, special_tokens=False) if whole is None else [whole]
            unknown = self.bundle.manifest.special_tokens.get("unk")
            if not ids or unknown in ids or max(ids) >= self.bundle.manifest.vocab_size:
                raise InputError(f"the target {word!r} is not in the vocabulary: give another word")
            if len(ids) > 1 and multi_token == "refuse":
                pieces = ", ".join(repr(self.tokenizer.fast.id_to_token(i)) for i in ids)
                raise InputError(
                    f"the target {word!r} is {len(ids)} tokens ({pieces}): give a word of one token, or "
                    'multi_token="score"'
                )
            found.add(tuple(ids))
        return sorted(found)

    def _score(
        self, texts: Sequence[Masked], targets: list[Target] | None, top_k: int, batching: Batching
    ) -> list[list[Scores]]:
        """For every mask of every text, what may stand there with its log-probability, a mean over its tokens."""
        found: list[list[Scores]] = [[[] for _ in one.masks] for one in texts]
        for index, rows in self._log_probabilities(texts, batching):
            for scores, row in zip(found[index], rows, strict=True):
                if targets is None:
                    scores += [((int(i),), float(row[i])) for i in np.argsort(-row, kind="stable")[:top_k]]
                else:
                    scores += [(target, float(row[target[0]])) for target in targets if len(target) == 1]
        several = [target for target in targets or () if len(target) > 1]
        wide = [
            (scores, one.widened(mask, count))
            for one, places in zip(texts, found, strict=True)
            for mask, scores in zip(one.masks, places, strict=True)
            for count in sorted({len(target) for target in several})
        ]
        for index, rows in self._log_probabilities([one for _, one in wide], batching):
            here = [target for target in several if len(target) == len(rows)]
            wide[index][0].extend((target, float(rows[range(len(rows)), target].mean())) for target in here)
        return found

    def _log_probabilities(self, texts: Sequence[Masked], batching: Batching) -> Iterator[tuple[int, Float]]:
        """Yield (index, float32 [masks,V]) for each text, in no particular order."""
        encoder: Encoder = self.runner
        for one in texts:
            check_length(len(one.ids), self.context_length, advice="shorten it, to have room for the targets")
        encodings: list[Any] = list(texts)
        for index, logits in encoder(encodings, batching):
            rows = logits[texts[index].masks]
            check_numbers(rows)
            yield index, log_softmax(rows)

    def _fill(self, one: Masked, masks: Sequence[Scores], top_k: int) -> list[Any]:
        lists = []
        for mask, scores in zip(one.masks, masks, strict=True):
            best = sorted(scores, key=lambda pair: -pair[1])[:top_k]
            # Of several masks, the others stay as they are, so their mask tokens must not be skipped.
            lists.append([self._candidate(one.filled(mask, t), t, score, len(masks) == 1) for t, score in best])
        return lists[0] if len(masks) == 1 else lists

    def _candidate(self, ids: list[int], target: Target, score: float, alone: bool) -> Candidate:
        word = self.tokenizer.decode(target, skip_special_tokens=False) or self.tokenizer.token(target[0])
        sequence = self.tokenizer.decode(ids, skip_special_tokens=alone)
        return Candidate(word, target[0], float(np.exp(score)), sequence, target)
