"""Correlations of pairs of numbers, as functions of how often each example counts ([R,N] -> [R])."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from torchless.quantize.intervals import Measure
from torchless.quantize.results import Metric

Float = npt.NDArray[np.float64]


def pearson(metric: Metric, x: Any, y: Any) -> Measure:
    """Of x and y, each [N]."""
    first, second = _centred(x), _centred(y)

    def of(counts: Float) -> Float:
        return _correlation(np.broadcast_to(first, counts.shape), np.broadcast_to(second, counts.shape), counts)

    return Measure(metric, len(first), of)


def spearman(metric: Metric, x: Any, y: Any) -> Measure:
    """Of x and y, each [N]; every resample is ranked anew."""
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def of(counts: Float) -> Float:
        return _correlation(ranks(first, counts), ranks(second, counts), counts)

    return Measure(metric, len(first), of)


def spearman_of_pairs(metric: Metric, x: Any, y: Any) -> Measure:
    """Of the numbers above the diagonals of x and y, each symmetric [N,N], where an example is a row and column.

    A resample counts the pair (i, j) as often as i times j, and no pair of an example with its own double. The
    ranks are those among all pairs once: to sort millions of pairs for each resample would change little.
    """
    above = np.triu_indices(len(x), 1)
    first, second = (_centred_matrix(np.asarray(one, np.float64), above) for one in (x, y))
    products = [first, second, first * first, second * second, first * second]

    def of(counts: Float) -> Float:
        weight = (counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)) / 2
        moments = [((counts @ one) * counts).sum(axis=1) / 2 for one in products]
        return _from_moments(weight, *moments)

    return Measure(metric, len(first), of)


def ranks(values: Float, counts: Float) -> Float:
    """The rank [R,N] of each of values [N] in each resample; equal ones share the mean of theirs."""
    distinct, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(distinct)))
    together = np.add.reduceat(counts[:, order], starts, axis=1)
    up_to = np.cumsum(together, axis=1)
    result: Float = (up_to - (together - 1) / 2)[:, place]
    return result


def _centred(values: Any) -> Float:
    made = np.asarray(values, np.float64)
    result: Float = made - made.mean()
    return result


def _centred_matrix(matrix: Float, above: tuple[Any, ...]) -> Float:
    """Symmetric, the ranks above the diagonal less their mean, 0 on it."""
    made = np.zeros_like(matrix)
    pairs = matrix[above]
    made[above] = _centred(ranks(pairs, np.ones((1, len(pairs))))[0])
    result: Float = made + made.T
    return result


def _correlation(x: Float, y: Float, counts: Float) -> Float:
    """x, y, counts: [R,N] -> [R]."""
    moments = ((counts * one).sum(axis=1) for one in (x, y, x * x, y * y, x * y))
    return _from_moments(counts.sum(axis=1), *moments)


def _from_moments(weight: Float, x: Float, y: Float, xx: Float, yy: Float, xy: Float) -> Float:
    """0 where one of both does not vary."""
    spread = np.sqrt(np.maximum(weight * xx - x * x, 0) * np.maximum(weight * yy - y * y, 0))
    together = weight * xy - x * y
    return np.where(spread > 0, together / np.where(spread > 0, spread, 1), 0.0)
