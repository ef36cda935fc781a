"""Figures against hand-worked and brute-force values, intervals against what they promise."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_ibtpo.evaluation.metrics import bootstrap_interval, compare, majority_reward, pass_at_k


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
        (["8", "7"], [0.0, 1.0], 0.0),  # a tie: the first
        ([None], [0.0], 0.0),
    ],
)
def test_majority(answers: list[str | None], rewards: list[float], reward: float) -> None:
    assert majority_reward(answers, rewards) == reward


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
    assert not compare(first, first, seed=0).is_significant


def test_pairs_are_made_by_problem_not_by_position() -> None:
    first, second = {"a": 0.0, "b": 1.0}, {"b": 1.0, "a": 0.0}
    assert compare(first, second, seed=0).interval == (0.0, 0.0)
    with pytest.raises(ValueError, match="1 problems are in only one"):
        compare(first, {"a": 1.0}, seed=0)
