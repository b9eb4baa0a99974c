"""fill-mask: a text with mask tokens in, the likeliest words for each of them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from torchless.bundle import EXPORT_AGAIN, Bundle
from torchless.encoder import Encoder
from torchless.errors import BundleError, InputError
from torchless.model import BATCH_SIZE, Fit, Model, Settings, check_count, texts_of
from torchless.sampling import check_numbers, softmax

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """One word for one mask: its probability, and the whole text with it filled in."""

    token: str
    token_id: int
    score: float
    sequence: str


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
        batch_size: int = BATCH_SIZE,
        truncation: bool | str = False,
        max_length: int | None = None,
        truncation_side: str = "right",
    ) -> list[Any]:
        """The top_k candidates for a text's mask, best first; a list of such lists if it has several masks.

        For a list of texts, a list of these in order. Raises InputError for a text without a mask.
        """
        check_count("top_k", top_k)
        fit = Fit(truncation, max_length, truncation_side)
        given, single = texts_of(texts)
        encoder: Encoder = self.runner
        encodings = [self.encode(text, fit) for text in given]
        for text, encoding in zip(given, encodings, strict=True):
            if self.mask_token_id not in encoding.ids:
                raise InputError(f"no {self.mask_token} in {str(text)[:60]!r}: mark the word to fill in with it")
        results: list[Any] = [None] * len(given)
        for index, logits in encoder(encodings, batch_size):
            results[index] = self._fill(encodings[index], logits, top_k)
        return results[0] if single else results

    def _fill(self, encoding: Encoding, logits: Float, top_k: int) -> list[Any]:
        masks = [i for i, token in enumerate(encoding.ids) if token == self.mask_token_id]
        check_numbers(logits[masks])
        lists = []
        for position in masks:
            probabilities = softmax(logits[position])
            best = np.argsort(-probabilities, kind="stable")[:top_k]
            # Of several masks, the others stay as they are, so their mask tokens must not be skipped.
            lists.append([self._candidate(encoding, position, int(i), probabilities, len(masks)) for i in best])
        return lists[0] if len(masks) == 1 else lists

    def _candidate(
        self, encoding: Encoding, position: int, token: int, probabilities: Float, masks: int
    ) -> Candidate:
        ids = list(encoding.ids)
        ids[position] = token
        sequence = self.tokenizer.decode(ids, skip_special_tokens=masks == 1)
        return Candidate(self.tokenizer.token(token), token, float(probabilities[token]), sequence)
