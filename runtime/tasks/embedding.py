"""feature-extraction: a text in, one vector out, pooled inside the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.bundle import EXPORT_AGAIN, Bundle
from torchless.encoder import Encoder
from torchless.errors import BundleError
from torchless.model import BATCH_SIZE, Fit, Model, Settings, texts_of
from torchless.sampling import check_numbers

Float = npt.NDArray[np.float32]


class Embedding(Model):
    """Call it with a text, or a list of texts."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(bundle, settings)
        self._runner = Encoder(self.session, bundle, "sentence_embedding")
        outputs = {value.name: value.shape for value in self.session.get_outputs()}
        size = outputs["sentence_embedding"][-1]
        if not isinstance(size, int):
            raise BundleError(f"{bundle.path}: the graph does not say how long its embeddings are: {EXPORT_AGAIN}")
        self.dimension = size

    def __call__(
        self,
        texts: Any,
        *,
        batch_size: int = BATCH_SIZE,
        truncation: bool | str = False,
        max_length: int | None = None,
        truncation_side: str = "right",
    ) -> Float:
        """float32 [D] for a text, [N,D] for a list of N, in order ([0,D] for an empty one).

        truncation, max_length, truncation_side: as in torchless.model.Fit.
        """
        fit = Fit(truncation, max_length, truncation_side)
        given, single = texts_of(texts)
        encoder: Encoder = self.runner
        encodings = [self.encode(text, fit) for text in given]
        vectors = np.zeros((len(given), self.dimension), np.float32)
        for index, vector in encoder(encodings, batch_size):
            check_numbers(vector, "embeddings")
            vectors[index] = vector
        return vectors[0] if single else vectors
