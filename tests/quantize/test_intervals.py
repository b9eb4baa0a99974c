"""Intervals against statistics computed on the drawn examples themselves, and against known theory."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score

from torchless.quantize.intervals import RESAMPLES, Measure, estimate, linear, mean, repeats, resamples
from torchless.quantize.quality.classification import calibration, confusion, macro_f1, micro_f1
from torchless.quantize.quality.correlation import pearson, ranks, spearman, spearman_of_pairs
from torchless.quantize.results import Interval, Metric

SHARE, ERROR = Metric("share", "share", "higher", percent=True), Metric("error", "error", "lower")
GENERATOR = np.random.default_rng(5)
N = 60


def of_the_drawn(measure, statistic, *arrays):
    """The measure of a few resamples, and the statistic of the examples that each of them drew."""
    counts = next(resamples(N))[:20]
    drawn = [np.repeat(np.arange(N), one.astype(int)) for one in counts]
    assert all(len(one) == N for one in drawn)
    expected = [statistic(*(array[one] for array in arrays)) for one in drawn]
    assert np.std(expected) > 0
    np.testing.assert_allclose(measure.of(counts), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(measure.of(np.ones((1, N))), statistic(*arrays), rtol=0, atol=1e-12)


TRUTH, GUESS = GENERATOR.integers(0, 4, N), GENERATOR.integers(0, 4, N)
TRUTH[TRUTH == 3], TRUTH[7] = 0, 3  # one label is rare, so that some resamples lack it
SETS, GUESSES = GENERATOR.random((2, N, 3)) < 0.4
X = GENERATOR.integers(0, 9, N).astype(float)  # with ties
Y = X + GENERATOR.normal(0, 3, N).round()


@pytest.mark.parametrize(("examples", "differs"), [(1, False), (5, False), (6, True)])
def test_no_difference_is_called_one_on_a_handful_of_examples(examples, differs):
    models = [[mean(ERROR, level + np.arange(examples) / 100)] for level in (1.0, 2.0)]
    (_, against) = estimate(models)[1]
    assert against["error"].value == pytest.approx(1) and against["error"].differs == differs


@pytest.mark.parametrize("classes", [4, 6])
def test_macro_f1_of_a_resample_is_scikit_learns_of_its_examples(classes):
    one_hot = np.eye(classes, dtype=bool)  # with 6, two labels that never occur
    measure = linear(SHARE, confusion(one_hot[GUESS], one_hot[TRUTH]), lambda sums: macro_f1(sums, absent=False))
    of_the_drawn(measure, lambda g, t: f1_score(t, g, average="macro", zero_division=0), GUESS, TRUTH)


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_f1_of_several_labels_is_scikit_learns(average):
    of = micro_f1 if average == "micro" else lambda sums: macro_f1(sums, absent=True)
    measure = linear(SHARE, confusion(GUESSES, SETS), of)
    of_the_drawn(measure, lambda g, t: f1_score(t, g, average=average, zero_division=0), GUESSES, SETS)


def test_the_calibration_error_is_the_mean_gap_over_fifteen_bins():
    confidence = GENERATOR.uniform(0.25, 1, N)
    confidence[:3] = 1.0, 14 / 15, 0.4  # a bin holds its upper edge
    hits = GENERATOR.random(N) < 0.7

    def expected(sure, right):
        edges = np.linspace(0, 1, 16)
        bins = [(sure > low + 1e-12) & (sure <= high + 1e-12) for low, high in pairwise(edges)]
        return sum(abs(right[one].mean() - sure[one].mean()) * one.mean() for one in bins if one.any())

    of_the_drawn(calibration(confidence, hits), expected, confidence, hits)


def test_correlations_of_a_resample_are_scipys_with_ties():
    of_the_drawn(pearson(ERROR, X, Y), lambda x, y: scipy.stats.pearsonr(x, y)[0], X, Y)
    of_the_drawn(spearman(ERROR, X, Y), lambda x, y: scipy.stats.spearmanr(x, y)[0], X, Y)
    assert pearson(ERROR, np.ones(N), Y).of(np.ones((2, N))).tolist() == [0, 0]


def test_the_rank_of_an_example_that_was_drawn_twice_is_that_of_its_doubles():
    counts = np.array([[1, 1, 1, 1], [2, 0, 1, 1]])
    found = ranks(np.array([3.0, 1.0, 3.0, 2.0]), counts)
    assert found.tolist() == [[3.5, 1, 3.5, 2], [3, 0.5, 3, 1]]


def test_the_correlation_of_pairs_takes_those_above_the_diagonal():
    vectors = GENERATOR.normal(size=(2, N, 4))
    vectors[1] += vectors[0]
    one, other = (v @ v.T for v in vectors)
    above = np.triu_indices(N, 1)
    measure = spearman_of_pairs(ERROR, one, other)
    expected = scipy.stats.spearmanr(one[above], other[above])[0]
    assert 0.3 < expected < 0.9
    assert measure.of(np.ones((1, N)))[0] == pytest.approx(expected, abs=1e-12)
    # Of a resample: each pair as often as both were drawn, none with itself, ranked among all pairs.
    counts = next(resamples(N))[0]
    weights = np.outer(counts, counts)[above].astype(int)
    drawn = [np.repeat(scipy.stats.rankdata(m[above]), weights) for m in (one, other)]
    assert measure.of(counts[None])[0] == pytest.approx(np.corrcoef(*drawn)[0, 1], abs=1e-12)


def test_perplexity_weighs_windows_by_their_tokens():
    measure = mean(ERROR, [10.0, 1.0], [5, 1])
    assert measure.of(np.array([[1.0, 1.0], [2.0, 0.0]])).tolist() == [11 / 6, 2.0]


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = GENERATOR.normal(3, 2, 400)
    ((quality, against),) = estimate([[mean(ERROR, values)]])
    found, width = quality["error"], 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean(), abs=1e-12) and against == {}
    assert found.low == pytest.approx(values.mean() - width, abs=0.1 * width)
    assert found.high == pytest.approx(values.mean() + width, abs=0.1 * width)


def test_nineteen_of_twenty_intervals_hold_the_true_mean():
    held = 0
    for seed in range(200):
        values = np.random.default_rng(seed).exponential(1.0, 80)
        ((quality, _),) = estimate([[mean(ERROR, values)]])
        held += quality["error"].low <= 1 <= quality["error"].high
    assert 180 <= held <= 197


def test_a_difference_is_paired_by_example():
    hard = GENERATOR.normal(0, 5, 200)  # examples differ far more than the models do
    one, same, other = hard, hard.copy(), hard + GENERATOR.normal(0.1, 0.2, 200)
    _, (_, equal), (quality, against) = estimate([[mean(ERROR, values)] for values in (one, same, other)])
    assert equal["error"] == Interval(0, 0, 0) and not equal["error"].differs
    difference = against["error"]
    assert difference.differs and 0.05 < difference.low < 0.1 < difference.high < 0.15
    assert quality["error"].high - quality["error"].low > 10 * (difference.high - difference.low)


def test_noise_alone_is_no_difference():
    found = 0
    for seed in range(100):
        one, other = np.random.default_rng(seed).normal(0, 1, (2, 100))
        found += estimate([[mean(ERROR, one)], [mean(ERROR, other)]])[1][1]["error"].differs
    assert found <= 12  # 5 are expected


def test_a_share_of_all_or_none_is_uncertain_by_the_rule_of_three():
    all_of_them, none, exact = mean(SHARE, np.ones(300)), mean(SHARE, np.zeros(300)), mean(ERROR, np.zeros(300))
    found = [estimate([[one]])[0][0][one.metric.name] for one in (all_of_them, none, exact)]
    assert found == [Interval(1, 0.99, 1), Interval(0, 0, 0.01), Interval(0, 0, 0)]
    assert estimate([[mean(SHARE, [1.0])]])[0][0]["share"] == Interval(1, 0, 1)


def test_an_interval_holds_its_value_even_where_resamples_are_biased():
    doubles = Measure(ERROR, 50, lambda counts: (counts > 1).mean(axis=1))  # none among the examples themselves
    found = estimate([[doubles]])[0][0]["error"]
    assert found.low == found.value == 0 and 0.2 < found.high < 0.4


def test_a_librarys_value_is_the_one_that_is_shown():
    measure = Measure(ERROR, 3, lambda counts: counts[:, 0], value=7.0)
    assert estimate([[measure]])[0][0]["error"].value == 7


def test_measures_of_unlike_numbers_of_examples_stand_side_by_side():
    windows, prompts = mean(ERROR, [1.0, 2.0, 3.0]), mean(SHARE, [0.0, 1.0])
    ((quality, _),) = estimate([[windows, prompts]])
    assert (quality["error"].value, quality["share"].value) == (2, 0.5)


def test_every_call_draws_the_same_resamples_and_two_thousand_of_them():
    one, other = (np.concatenate(list(resamples(1500))) for _ in range(2))
    assert one.shape == (RESAMPLES, 1500) and (one == other).all() and (one.sum(axis=1) == 1500).all()


@pytest.mark.parametrize(
    ("number", "outside"),
    [(1, 0), (2, 0), (3, 0), (5, 0), (6, 0), (8, 0), (9, 1), (11, 1), (12, 2), (20, 5), (100, 39)],
)
def test_the_interval_of_a_median_leaves_out_what_the_sign_test_allows(number, outside):
    values = np.random.default_rng(0).permutation(number) + 1.0
    found = repeats(list(values))
    assert found == Interval((number + 1) / 2, 1 + outside, number - outside)
    if number > 5:
        assert 2 * scipy.stats.binom.cdf(outside, number, 0.5) <= 0.05
        assert outside == 0 or 2 * scipy.stats.binom.cdf(outside + 1, number, 0.5) > 0.05
