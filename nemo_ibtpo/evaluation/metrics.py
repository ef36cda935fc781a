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
_RESAMPLES = 10_000  # the ends of the interval are then good to about a fortieth of its width
_EXACT_PAIRS = 16
_PERMUTATIONS = 20_000  # a p-value of 0.05 is then good to 0.0015 (standard error)
_AT_ONCE = 1_000  # bounds memory; divides both


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
        p_value: of the paired permutation test, two-sided: how often swapping the two evaluations at random, problem
            by problem, makes a mean difference at least as large.
        problems: problems they have in common, all of them.
    """

    difference: float
    interval: Interval
    p_value: float
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


def bootstrap_interval(scores_P: Sequence[float] | NDArray[np.float64], seed: int) -> Interval:
    """Confidence interval of the mean of one score per problem.

    Raises:
        ValueError: no problems.
    """
    scores = np.asarray(scores_P, dtype=np.float64)
    if scores.size == 0:
        raise ValueError("no problems to resample")
    rng = np.random.default_rng(seed)
    chunks = [_AT_ONCE] * (_RESAMPLES // _AT_ONCE)
    means = np.concatenate([scores[rng.integers(scores.size, size=(n, scores.size))].mean(axis=1) for n in chunks])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def compare(first: Mapping[str, float], second: Mapping[str, float], seed: int) -> Comparison:
    """Paired bootstrap and paired permutation test: both evaluations are seen on the same problems.

    Args:
        first, second: one score per problem, by problem id; the same problems.
        seed: of the resampling and of the permutations.

    Raises:
        ValueError: they were made on different problems.
    """
    if first.keys() != second.keys():
        only_one = len(first.keys() ^ second.keys())
        raise ValueError(f"the evaluations are not comparable: {only_one} problems are in only one of them")
    differences = np.array([second[problem] - first[problem] for problem in sorted(first)])
    interval = bootstrap_interval(differences, seed)
    p_value = permutation_p_value(differences, seed)
    return Comparison(float(differences.mean()), interval, p_value, len(differences))


def permutation_p_value(differences_P: Sequence[float] | NDArray[np.float64], seed: int) -> float:
    """Two-sided p-value of the paired permutation (sign-flip) test on the mean of the differences.

    If the two evaluations were of equally good models, each difference could as well have the other sign. Up to
    ``_EXACT_PAIRS`` differences that are not zero all sign patterns are looked at; beyond that ``_PERMUTATIONS``
    random ones, and p = (1 + at least as extreme) / (1 + patterns), which is never 0 (Phipson and Smyth 2010).

    Raises:
        ValueError: no problems.
    """
    differences = np.asarray(differences_P, dtype=np.float64)
    if differences.size == 0:
        raise ValueError("no problems to compare")
    differences = differences[differences != 0]  # their sign changes nothing
    pairs = differences.size
    observed = abs(differences.sum()) * (1 - 1e-12)  # sums of the same numbers in another order are equal
    if pairs <= _EXACT_PAIRS:
        patterns = (np.arange(2**pairs)[:, None] >> np.arange(pairs)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ differences) >= observed))
    rng = np.random.default_rng(seed)
    extreme = 0
    for _ in range(_PERMUTATIONS // _AT_ONCE):
        signs = 1 - 2 * rng.integers(2, size=(_AT_ONCE, pairs), dtype=np.int8)
        extreme += int(np.count_nonzero(np.abs(signs @ differences) >= observed))
    return (1 + extreme) / (1 + _PERMUTATIONS)
