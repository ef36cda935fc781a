"""Figures against hand-worked and brute-force values, intervals against what they promise."""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_ibtpo.evaluation.metrics import (
    bootstrap_interval,
    compare,
    majority_reward,
    pass_at_k,
    permutation_p_value,
)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_k_subsets_with_a_correct_sample(case: tuple[int, int, int]) -> None:
    n, correct, k = case
    subsets = list(combinations([1] * correct + [0] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_refuses_what_it_cannot_estimate() -> None:
    with pytest.raises(ValueError, match="pass@5 needs at least 5 samples"):
        pass_at_k(4, 1, 5)
    with pytest.raises(ValueError, match="5 of 4 samples"):
        pass_at_k(4, 5, 1)


@pytest.mark.parametrize(
    ("answers", "rewards", "reward"),
    [
        (["7", "8", "8"], [1.0, 0.0, 0.0], 0.0),
        (["7", "8", "7"], [1.0, 0.0, 1.0], 1.0),
        ([None, None, "8"], [0.0, 0.0, 1.0], 1.0),  # no answer is no vote
        (["8", "7"], [0.0, 1.0], 0.5),  # a tie: the mean
        (["8", "7", "9", "7", "8"], [0.0, 1.0, 0.0, 1.0, 0.0], 0.5),
        (["x + 1", "y", "x+1"], [1.0, 0.0, 1.0], 1.0),  # white space makes no other answer
        ([None], [0.0], 0.0),
    ],
)
def test_majority(answers: list[str | None], rewards: list[float], reward: float) -> None:
    assert majority_reward(answers, rewards) == reward
    assert majority_reward(answers[::-1], rewards[::-1]) == reward


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
    assert p == pytest.approx(min(1.0, 2 * tail), abs=1e-12 if n <= 16 else 0.005)


def test_the_p_value_is_seeded_and_never_zero() -> None:
    assert permutation_p_value([1.0] * 60, seed=0) == pytest.approx(1 / 20_001)
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
