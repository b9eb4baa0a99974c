"""A model that gives a text, or a pair, one row of logits: what classifying, ranking and choosing stand on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from torchless.batching import Batching
from torchless.bundle import Bundle
from torchless.encoder import Encoder
from torchless.errors import BundleError
from torchless.manifest import EXPORT_AGAIN
from torchless.model import Fit, Model
from torchless.providers.first import Settings
from torchless.sampling import check_numbers
from torchless.text import Text

Float = npt.NDArray[np.float32]


def check_columns(logits: Float, columns: int) -> None:
    """BundleError unless logits [..,L] have one column a label: a manifest that lies about its graph."""
    if logits.shape[-1] != columns:
        raise BundleError(
            f"the graph scores {logits.shape[-1]} labels, torchless.json names {columns}: {EXPORT_AGAIN}"
        )


class RowScorer(Model):
    """An encoder, or a GPT that answers at the last token, whose head gives a text one row of logits."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(bundle, settings)
        self._runner = Encoder(self.session, bundle, "logits")

    def rows(self, encodings: Sequence[Encoding], columns: int, batching: Batching) -> Float:
        """float32 [N,columns] in the order given. Raises BundleError for a head of another width.

        Raises GenerationError for logits that are not numbers.
        """
        rows = np.zeros((len(encodings), columns), np.float32)
        encoder: Encoder = self.runner
        for index, row in encoder(encodings, batching):
            check_columns(row, columns)
            check_numbers(row)
            rows[index] = row
        return rows


class Classifier(RowScorer):
    """A head whose columns have names."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        if not bundle.manifest.labels:
            raise BundleError(f"{bundle.path}: the manifest names no labels: {EXPORT_AGAIN}")
        super().__init__(bundle, settings)
        self.labels: tuple[str, ...] = bundle.manifest.labels

    def logits(self, texts: Sequence[Text], fit: Fit, batching: Batching) -> Float:
        """float32 [N,L] of texts and pairs, in order."""
        encodings = [self.encode(text, fit) for text in batching.each(texts)]
        return self.rows(encodings, len(self.labels), batching)
