"""Intervals against what they promise, tests against brute force and textbook values."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nemo_ibtpo.evaluation.statistics import (
    bootstrap_interval,
    compare,
    jackknife,
    over_seeds,
    over_seeds_and_problems,
    permutation_p_value,
)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        low, high = bootstrap_interval(rng.binomial(4, 0.3, size=60) / 4, seed=trial)
        hits += low <= 0.3 <= high
    assert 90 <= hits <= 99


def test_the_interval_is_seeded_and_of_the_right_width() -> None:
    scores = np.repeat([0.0, 1.0], 200)
    low, high = bootstrap_interval(scores, seed=1)
    assert (low, high) == bootstrap_interval(scores, seed=1)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 400**0.5, rel=0.05)  # the normal approximation's
    with pytest.raises(ValueError, match="no problems"):
        bootstrap_interval([], seed=0)


def test_pairing_sees_a_difference_that_separate_intervals_hide() -> None:
    rng = np.random.default_rng(0)
    easy = rng.random(100)
    first = {str(i): float(score) for i, score in enumerate(easy)}
    second = {key: score + 0.02 + 0.01 * rng.standard_normal() for key, score in first.items()}
    comparison = compare(first, second, seed=0)
    assert comparison.difference == pytest.approx(0.02, abs=0.005)
    assert comparison.is_significant and comparison.problems == 100
    assert bootstrap_interval(list(second.values()), 0).low < np.mean(easy)  # unpaired: no evidence
    assert comparison.p_value < 0.001
    same = compare(first, first, seed=0)
    assert not same.is_significant and same.p_value == 1.0


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_the_p_value_counts_sign_patterns(differences: list[int]) -> None:
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in product((1, -1), repeat=len(differences))
    ]
    expected = sum(abs(total) >= abs(sum(differences)) for total in sums) / len(sums)
    assert permutation_p_value([d / 7 for d in differences], seed=0) == pytest.approx(expected)


@pytest.mark.parametrize(("wins", "losses"), [(9, 3), (6, 6), (12, 0), (20, 8), (40, 20)])
def test_the_p_value_of_wins_and_losses_is_the_sign_tests(wins: int, losses: int) -> None:
    """Equal magnitudes make it binomial; above 16 pairs it is drawn, and close."""
    n = wins + losses
    tail = sum(comb(n, i) for i in range(max(wins, losses), n + 1)) / 2**n
    ties = [0.0] * 50
    p = permutation_p_value([0.25] * wins + [-0.25] * losses + ties, seed=0)
    assert p == pytest.approx(min(1.0, 2 * tail), abs=1e-12 if n <= 15 else 0.005)


def test_the_p_value_is_seeded_and_never_zero() -> None:
    assert permutation_p_value([1.0] * 60, seed=0) == pytest.approx(2 / 32_769)
    assert permutation_p_value([0.0, 0.0], seed=0) == 1.0
    noise = np.random.default_rng(3).standard_normal(50)
    assert permutation_p_value(noise, seed=1) == permutation_p_value(noise, seed=1)
    with pytest.raises(ValueError, match="no problems"):
        permutation_p_value([], seed=0)


def test_the_bootstrap_interval_of_a_proportion_is_the_binomials() -> None:
    """Resampling n zeros and ones draws a binomial: its quantiles are known without a library."""
    ones, n = 18, 60
    low, high = bootstrap_interval([1.0] * ones + [0.0] * (n - ones), seed=0)
    p = ones / n
    cumulative = np.cumsum([comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1)])
    expected = [int(np.searchsorted(cumulative, q)) / n for q in (0.025, 0.975)]
    assert [low, high] == pytest.approx(expected, abs=1 / n)


def test_pairs_are_made_by_problem_not_by_position() -> None:
    first, second = {"a": 0.0, "b": 1.0}, {"b": 1.0, "a": 0.0}
    assert compare(first, second, seed=0).interval == (0.0, 0.0)
    with pytest.raises(ValueError, match="1 problems are in only one"):
        compare(first, {"a": 1.0}, seed=0)


def test_the_mean_over_seeds_and_problems_counts_the_residual_once() -> None:
    # Rows have the means 0.5 and 2.5, columns too: MS_S = MS_P = 4, residuals of +-0.5: MS_E = 1.
    estimate = over_seeds_and_problems(np.array([[0.0, 1.0], [1.0, 4.0]]))
    assert estimate.mean == 1.5 and estimate.interval is not None
    freedom = 7**2 / (4**2 + 4**2 + 1**2)
    assert estimate.interval.high - 1.5 == pytest.approx(stats.t.ppf(0.975, freedom) * (7 / 4) ** 0.5)


def test_without_effects_the_residual_alone_is_left() -> None:
    # Row and column means are all equal: the unbiased estimate would be negative.
    estimate = over_seeds_and_problems(np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert estimate.interval is not None
    freedom = 1.0  # of the residual, which is all there is
    assert estimate.interval.high - 0.5 == pytest.approx(stats.t.ppf(0.975, freedom) * (1 / 4) ** 0.5)


@pytest.mark.parametrize(("seeds", "problems"), [(3, 40), (8, 40), (16, 400)])
@pytest.mark.parametrize("residual", [0.05, 0.4])
def test_intervals_over_seeds_and_problems_cover_the_truth_as_often_as_they_say(
    seeds: int, problems: int, residual: float
) -> None:
    """The true mean and the true variance of the mean are known."""
    rng = np.random.default_rng(seeds)
    covered, variances, trials = [], [], 500
    for _ in range(trials):
        effects = rng.normal(0, 0.03, size=(seeds, 1)) + rng.normal(0, 0.1, size=(1, problems))
        interval = over_seeds_and_problems(0.4 + effects + rng.normal(0, residual, size=(seeds, problems))).interval
        assert interval is not None
        covered.append(interval.low <= 0.4 <= interval.high)
        variances.append((interval.high - interval.low) ** 2)
    assert 0.92 <= np.mean(covered) <= 0.985
    if seeds == 16:  # Student's quantile is near the normal one, so that the width gives the variance away
        true = 0.03**2 / seeds + 0.1**2 / problems + residual**2 / (seeds * problems)
        assert np.mean(variances) / (2 * 2.05) ** 2 == pytest.approx(true, rel=0.12)


def test_seeds_are_seen_through_students_quantile() -> None:
    # Three seeds that agree on all problems: mean 0.5, standard deviation 0.1, t(2) = 4.303.
    for estimate in (
        over_seeds_and_problems(np.repeat([[0.4], [0.5], [0.6]], 10, axis=1)),
        over_seeds(np.array([0.4, 0.5, 0.6])),
    ):
        assert estimate.interval is not None
        assert estimate.interval.high - 0.5 == pytest.approx(4.3027 * 0.1 / np.sqrt(3), rel=1e-4)
    assert over_seeds_and_problems(np.array([[0.0, 1.0]])).interval is None, "one seed says nothing about seeds"
    assert over_seeds(np.array([1.0])).interval is None
    assert not over_seeds(np.array([1.0])).is_significant
    with pytest.raises(ValueError, match="no scores"):
        over_seeds_and_problems(np.empty((0, 3)))


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.random.default_rng(0).normal(size=20)
    without = (values.sum() - values) / 19
    assert jackknife(values.mean(), without).interval == pytest.approx(over_seeds(values).interval)
