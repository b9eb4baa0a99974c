"""feature-extraction: a text in, one vector out, pooled inside the graph; or one vector a token."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.arguments import check_count, check_flag
from torchless.batching import BATCH_SIZE
from torchless.bundle import Bundle
from torchless.encoder import Encoder
from torchless.errors import BundleError, InputError
from torchless.manifest import EXPORT_AGAIN
from torchless.model import Fit, Model, texts_of
from torchless.providers.first import Settings
from torchless.sampling import check_numbers
from torchless.similarity import array_of, check_vectors, cosine, search, unit

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """A row of the corpus: its index, and the cosine of its angle to the query."""

    index: int
    score: float


class Embedding(Model):
    """Call it with a text, or a list of texts."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(bundle, settings)
        self._runner = Encoder(self.session, bundle, "sentence_embedding")
        outputs = {value.name: value.shape for value in self.session.get_outputs()}
        size = outputs[self._runner.outputs[0]][-1]
        if not isinstance(size, int):
            raise BundleError(f"{bundle.path}: the graph does not say how long its embeddings are: {EXPORT_AGAIN}")
        self.dimension = size
        self.normalized = bundle.manifest.pooling is not None and bundle.manifest.pooling.normalize

    def __call__(
        self,
        texts: Any,
        *,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        batch_size: int = BATCH_SIZE,
        cancel: threading.Event | None = None,
        progress: Callable[[int, int], object] | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        truncation_side: str = "right",
    ) -> Float:
        """float32 [D] for a text, [N,D] for a list of N, in order ([0,D] for an empty one).

        normalize: True for vectors of length 1, by default as the bundle was exported. truncate_dim: keep the
        first numbers only, for models that were trained to allow it; what is normalized is so afterwards, too.
        truncation, max_length, truncation_side: as in torchless.model.Fit.
        """
        size = self._check_shape(normalize, truncate_dim)
        given, single = texts_of(texts)
        vectors = np.zeros((len(given), size), np.float32)
        fit = Fit(truncation, max_length, truncation_side)
        encoder: Encoder = self.runner
        batching, start = self.batching(batch_size, cancel, progress), 0
        for part in batching.blocks(given):
            for index, vector in encoder([self.encode(text, fit) for text in batching.each(part)], batching):
                check_numbers(vector, "embeddings")
                vectors[start + index] = vector[:size]
            start += len(part)
        if normalize or (self.normalized and size < self.dimension):
            vectors = unit(vectors)
        return vectors[0] if single else vectors

    def _check_shape(self, normalize: bool | None, truncate_dim: int | None) -> int:
        """How many numbers of each vector are wanted, or InputError for settings that cannot be met."""
        if normalize is not None:
            check_flag("normalize", normalize)
        if normalize is False and self.normalized:
            raise InputError(
                f"normalize=False: the graph of {self.bundle.path} normalizes, export it with normalize=False"
            )
        if truncate_dim is None:
            return self.dimension
        truncate_dim = check_count("truncate_dim", truncate_dim)
        if truncate_dim > self.dimension:
            raise InputError(f"truncate_dim={truncate_dim:,}: the vectors have {self.dimension:,} numbers")
        return truncate_dim

    def tokens(
        self,
        texts: Any,
        *,
        batch_size: int = BATCH_SIZE,
        cancel: threading.Event | None = None,
        progress: Callable[[int, int], object] | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        truncation_side: str = "right",
    ) -> Any:
        """Hidden states float32 [S,D] of a text's tokens, special ones included; a list of them for a list.

        It is what transformers' feature-extraction pipeline gives. truncation, max_length, truncation_side: as in
        torchless.model.Fit.
        """
        given, single = texts_of(texts)
        fit = Fit(truncation, max_length, truncation_side)
        states = Encoder(self.session, self.bundle, "last_hidden_state")
        batching = self.batching(batch_size, cancel, progress)

        def answer(part: Sequence[Any]) -> list[Any]:
            found: list[Any] = [None] * len(part)
            for index, rows in states([self.encode(text, fit) for text in batching.each(part)], batching):
                check_numbers(rows, "hidden states")
                found[index] = rows.copy()  # else each keeps its whole batch in memory
            return found

        found = batching.answers(given, answer)
        return found[0] if single else found

    def similarity(self, a: Any, b: Any) -> Any:
        """The cosine of texts or vectors: a number for one and one, else float32 [M], or [N,M] for N and M.

        a, b: a text, a list of texts, or vectors [D] or [N,D] that this model has made.
        """
        (left, one), (right, other) = self._vectors("a", a), self._vectors("b", b)
        check_vectors("b", right, left.shape[1])
        found = cosine(left, right)
        if one and other:
            return float(found[0, 0])
        return found[0] if one else found[:, 0] if other else found

    def search(self, query: Any, corpus: Any, *, top_k: int = 10) -> Any:
        """The top_k rows of a matrix that are most like a query, best first: a list of Match, or lists of them.

        query: a text, a list of texts, or vectors [D] or [N,D]. corpus: [N,D] as the model has made them for the
        texts to search, in memory or in a mapped file; it is read block by block.
        """
        top_k = check_count("top_k", top_k)
        corpus = check_vectors("corpus", corpus)
        asked, single = self._vectors("query", query, size=corpus.shape[1])
        found = [
            [Match(int(index), float(score)) for score, index in zip(scores, indices, strict=True)]
            for scores, indices in zip(*search(asked, corpus, top_k), strict=True)
        ]
        return found[0] if single else found

    def _vectors(self, name: str, given: Any, size: int | None = None) -> tuple[Float, bool]:
        """Texts or vectors -> vectors [N,D], and whether it was a single one."""
        if isinstance(given, str | tuple) or (isinstance(given, list) and all(isinstance(x, str) for x in given)):
            texts, single = texts_of(given)
            cut = size if size is not None and size < self.dimension else None  # the corpus was truncated
            return self(texts, truncate_dim=cut), single
        array = array_of(name, given)
        return check_vectors(name, array[None] if array.ndim == 1 else array), array.ndim == 1
