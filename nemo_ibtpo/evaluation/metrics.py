"""Scores of one problem from its samples. Pure Python and numpy; how sure a mean is: ``statistics``."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples is correct: 1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples per problem and k >= 1; there are {num_samples}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"{num_correct} of {num_samples} samples cannot be correct")
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def majority_reward(answers: Sequence[str | None], rewards: Sequence[float]) -> float:
    """Reward of the answer given most often; 0 if no sample has an answer.

    Declared: answers are votes for the same if their texts are equal, white space left out. On a tie it is the mean
    reward of the tied answers, what breaking the tie at random would give on average, so that it does not depend on
    the order of the samples.

    Args:
        answers: answer of each sample, None where there is none.
        rewards: reward of each sample.
    """
    votes: dict[str, list[float]] = {}
    for answer, reward in zip(answers, rewards, strict=True):
        if answer is not None:
            votes.setdefault("".join(answer.split()), []).append(reward)
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    return float(np.mean([np.mean(given) for given in votes.values() if len(given) == most]))
