"""Scores of a problem against hand-worked and brute-force values."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_ibtpo.evaluation.metrics import majority_reward, pass_at_k


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
