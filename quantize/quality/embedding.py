"""feature-extraction: how far vectors are from the first model's, and how well they find texts of the same label.

N texts, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from torchless.batching import Batching
from torchless.quantize.data import Example, sample
from torchless.quantize.intervals import Measure, mean
from torchless.quantize.quality.alike import same_dimension
from torchless.quantize.quality.correlation import spearman_of_pairs
from torchless.quantize.quality.watch import Watch, labelled
from torchless.quantize.results import Metric
from torchless.sampling import check_numbers
from torchless.similarity import cosine, search, unit
from torchless.tasks.embedding import Embedding

Float = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

NEAREST = 10
PAIRED = 1_000  # texts at most whose similarities are all ranked: half a million
QUERIES = 256

COSINE_ERROR = Metric("cosine_error", "mean cosine error", "lower")
NEIGHBOURS = Metric("neighbours", f"the {NEAREST} nearest as the first's", "higher", percent=True)
SIMILARITIES = Metric("similarity_rank", "rank correlation of similarities", "higher")
RETRIEVAL = Metric("retrieval", "nearest text has the same label", "higher", percent=True)
MRR = Metric("mrr", "mean reciprocal rank of the same label", "higher")


def measure_embedding(
    models: Sequence[Embedding], examples: Sequence[Example], watch: Watch
) -> list[list[Measure]]:
    """Each model's measures. Raises InputError for models whose vectors have other lengths."""
    same_dimension(models)
    if len(examples) <= 2 * NEAREST:
        few = "One text is" if len(examples) == 1 else f"{len(examples)} texts are"
        watch.notes.append(f"{few} too few to compare the {NEAREST} nearest of each.")
    if len(examples) > PAIRED:
        watch.notes.append(f"The rank correlation is of all pairs of {PAIRED:,} texts, drawn at random.")
    watch.begin(len(models) * len(examples))
    measured: list[list[Measure]] = []
    first: Float | None = None
    for model in models:
        vectors = embed(model, examples, watch, count=first is None)
        measures = retrieval(vectors, [example.label for example in examples]) if labelled(examples) else []
        if first is None:
            first = vectors
        else:
            measures += closeness(first, vectors)
        measured.append(measures)
    watch.tell_cut(models[0], examples)
    return measured


def embed(model: Embedding, examples: Sequence[Example], watch: Watch, *, count: bool) -> Float:
    """float32 [N,D], each of length 1."""
    vectors = np.zeros((len(examples), model.dimension), np.float32)
    for block in watch.blocks(range(len(examples))):
        encodings = [watch.encode(model, examples[index].given, count=count) for index in block]
        for index, vector in model.runner(encodings, Batching()):
            check_numbers(vector, "embeddings")
            vectors[block[index]] = vector
    return unit(vectors)


def closeness(first: Float, vectors: Float) -> list[Measure]:
    """What is compared with the first model's vectors; both are [N,D] of length 1."""
    errors = ((first.astype(np.float64) - vectors) ** 2).sum(axis=1) / 2  # 1 - cosine, without its rounding
    measures = [mean(COSINE_ERROR, errors)]
    if len(vectors) > 2 * NEAREST:
        pairs = zip(nearest(first), nearest(vectors), strict=True)
        measures.append(mean(NEIGHBOURS, [len(np.intersect1d(one, other)) / NEAREST for one, other in pairs]))
    if len(vectors) > 2:
        chosen = sample(range(len(vectors)), PAIRED)
        measures.append(
            spearman_of_pairs(SIMILARITIES, *(cosine(one[chosen], one[chosen]) for one in (first, vectors)))
        )
    return measures


def nearest(vectors: Float) -> Ids:
    """The NEAREST others of each, [N,NEAREST]."""
    found = search(vectors, vectors, NEAREST + 1)[1]
    others = found != np.arange(len(vectors))[:, None]
    others[others.all(axis=1), NEAREST] = False  # a text among many of its doubles: itself is not listed
    result: Ids = found[others].reshape(-1, NEAREST)
    return result


def retrieval(vectors: Float, labels: Sequence[object]) -> list[Measure]:
    """How well each text finds another of its label among all; one that is alone with its label does not count."""
    ids = np.unique([str(label) for label in labels], return_inverse=True)[1]
    rank = np.zeros(len(vectors))  # of the first of the same label, 0 for none
    for start in range(0, len(vectors), QUERIES):
        scores = cosine(vectors[start : start + QUERIES], vectors)
        rows = np.arange(len(scores))
        scores[rows, start + rows] = -np.inf
        same = ids[start : start + QUERIES, None] == ids
        best = np.where(same, scores, -np.inf).max(axis=1, keepdims=True)
        ahead = ((scores > best) & ~same).sum(axis=1)
        rank[start : start + QUERIES] = np.where(np.isfinite(best[:, 0]), ahead + 1, 0)
    counted = rank > 0
    if not counted.any():
        return []
    return [
        mean(RETRIEVAL, rank == 1, counted),
        mean(MRR, np.divide(1, rank, out=np.zeros_like(rank), where=counted), counted),
    ]
