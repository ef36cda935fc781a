"""Figures of an evaluation and how sure one may be of them. Pure numpy and Python.

Intervals are 95 % percentile bootstrap intervals over *problems*: samples of one problem are not independent of
each other, problems are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_RESAMPLES = 2_000  # the ends of the interval are then good to about a tenth of its width


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much better the second of two evaluations is than the first.

    Attributes:
        difference: mean over problems of second minus first.
        interval: confidence interval of the difference.
        problems: problems they have in common, all of them.
    """

    difference: float
    interval: Interval
    problems: int

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.interval.low > 0 or self.interval.high < 0


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
    """Reward of the answer given most often; the first of them on a tie, 0 if no sample has an answer.

    Args:
        answers: answer of each sample, None where there is none.
        rewards: reward of each sample.
    """
    counts: dict[str, int] = {}
    reward_of: dict[str, float] = {}
    for answer, reward in zip(answers, rewards, strict=True):
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
            reward_of[answer] = reward
    if not counts:
        return 0.0
    return reward_of[max(counts, key=counts.__getitem__)]


def bootstrap_interval(scores_P: Sequence[float] | NDArray[np.float64], seed: int) -> Interval:
    """Confidence interval of the mean of one score per problem.

    Raises:
        ValueError: no problems.
    """
    scores = np.asarray(scores_P, dtype=np.float64)
    if scores.size == 0:
        raise ValueError("no problems to resample")
    rng = np.random.default_rng(seed)
    means = [scores[rng.integers(scores.size, size=scores.size)].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def compare(first: Mapping[str, float], second: Mapping[str, float], seed: int) -> Comparison:
    """Paired bootstrap: problems are resampled, and both evaluations see the same ones.

    Args:
        first, second: one score per problem, by problem id; the same problems.
        seed: of the resampling.

    Raises:
        ValueError: they were made on different problems.
    """
    if first.keys() != second.keys():
        only_one = len(first.keys() ^ second.keys())
        raise ValueError(f"the evaluations are not comparable: {only_one} problems are in only one of them")
    differences = np.array([second[problem] - first[problem] for problem in sorted(first)])
    interval = bootstrap_interval(differences, seed)
    return Comparison(float(differences.mean()), interval, len(differences))
