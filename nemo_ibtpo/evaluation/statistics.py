"""How sure one may be of a mean: intervals and tests, for evaluations and experiments alike.

Everything is at 95 %, and the methods are scipy's where it has them. Which one fits depends on what another
experiment would draw again:

- problems: :func:`bootstrap_interval`, the percentile bootstrap (samples of one problem are not independent of each
  other, problems are);
- seeds: :func:`over_seeds`, Student's interval;
- seeds *and* problems: :func:`over_seeds_and_problems`;
- prompts, for a figure that is no mean over prompts: :func:`jackknife`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
_RESAMPLES = 10_000  # the ends of the interval are then good to about a fortieth of its width
_SIGN_PATTERNS = 2**15  # all of them up to 15 pairs; beyond, p = 0.05 is good to 0.0017 (standard error)
_AT_ONCE = 1_000  # bounds memory

FloatArray = NDArray[np.float64]


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval; without one where there is too little to tell."""

    mean: float
    interval: Interval | None

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)

    def shown(self, form: str, times: float = 1) -> str:
        """Such as ``42.5 [36.4, 48.7]``: the mean and the interval, multiplied and formatted."""
        if self.interval is None:
            return f"{times * self.mean:{form}}"
        low, high = self.interval
        return f"{times * self.mean:{form}} [{times * low:{form}}, {times * high:{form}}]"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much better the second of two evaluations is than the first.

    Attributes:
        difference: mean over problems of second minus first.
        interval: confidence interval of the difference.
        p_value: of the paired permutation test, two-sided (:func:`permutation_p_value`).
        problems: problems they have in common, all of them.
    """

    difference: float
    interval: Interval
    p_value: float
    problems: int

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves zero out."""
        return Estimate(self.difference, self.interval).is_significant


def bootstrap_interval(scores_P: Sequence[float] | FloatArray, seed: int) -> Interval:
    """Percentile bootstrap interval of the mean of one score per problem.

    Raises:
        ValueError: no problems.
    """
    scores = np.asarray(scores_P, dtype=np.float64)
    if scores.size == 0:
        raise ValueError("no problems to resample")
    if scores.size == 1:
        return Interval(float(scores[0]), float(scores[0]))
    low, high = stats.bootstrap(
        (scores,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=_AT_ONCE,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(low), float(high))


def bootstrap(scores_P: Sequence[float] | FloatArray, seed: int) -> Estimate:
    """The mean of one score per problem with its bootstrap interval."""
    return Estimate(float(np.mean(scores_P)), bootstrap_interval(scores_P, seed))


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


def permutation_p_value(differences_P: Sequence[float] | FloatArray, seed: int) -> float:
    """Two-sided p-value of the paired permutation (sign-flip) test on the mean of the differences.

    If the two evaluations were of equally good models, each difference could as well have the other sign. Up to 15
    differences that are not zero all sign patterns are looked at; beyond that 32,768 random ones, and the observed
    one counts as one of them, so that p is never 0 (Phipson and Smyth 2010).

    Raises:
        ValueError: no problems.
    """
    differences = np.asarray(differences_P, dtype=np.float64)
    if differences.size == 0:
        raise ValueError("no problems to compare")
    differences = differences[differences != 0]  # their sign changes nothing
    if differences.size < 2:
        return 1.0  # one pair is as extreme with either sign
    test = stats.permutation_test(
        (differences,),
        np.sum,
        permutation_type="samples",
        n_resamples=_SIGN_PATTERNS,
        batch=_AT_ONCE,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def over_seeds(values_S: FloatArray) -> Estimate:
    """A mean over seeds with Student's interval; without one for a single seed."""
    mean = float(values_S.mean())
    if len(values_S) < 2:
        return Estimate(mean, None)
    return _student(mean, float(values_S.var(ddof=1)) / len(values_S), len(values_S) - 1)


def over_seeds_and_problems(scores_SP: FloatArray) -> Estimate:
    """The mean of scores over seeds [S] and problems [P], both of which another experiment would draw again.

    With the mean squares of seeds, problems and residual of a two-way layout without replication, the variance of
    the mean is estimated without bias by::

        (MS_S + MS_P - MS_E) / (S P)

    The residual is in both of the first two, so one of them is taken out again. Where chance makes the sum smaller
    than MS_E, the variance is taken to be MS_E / (S P), what it is if neither seeds nor problems differ. The interval
    is Student's with the degrees of freedom of Satterthwaite's approximation: a normal quantile, or a bootstrap over
    three seeds, would be too narrow.

    Raises:
        ValueError: no scores.
    """
    if scores_SP.size == 0:
        raise ValueError("no scores to average")
    mean = float(scores_SP.mean())
    seeds, problems = scores_SP.shape
    if seeds < 2 or problems < 2:
        return Estimate(mean, None)
    seed_means_S, problem_means_P = scores_SP.mean(axis=1), scores_SP.mean(axis=0)
    residuals_SP = scores_SP - seed_means_S[:, None] - problem_means_P + mean
    freedom = np.array([seeds - 1, problems - 1, (seeds - 1) * (problems - 1)])
    mean_squares = np.array(
        [
            problems * seed_means_S.var(ddof=1),
            seeds * problem_means_P.var(ddof=1),
            np.square(residuals_SP).sum() / freedom[2],
        ]
    )
    total = max(mean_squares[0] + mean_squares[1] - mean_squares[2], mean_squares[2])
    if total <= 0:
        return Estimate(mean, Interval(mean, mean))
    return _student(mean, float(total) / scores_SP.size, float(total**2 / (mean_squares**2 / freedom).sum()))


def jackknife(whole: float, without_one_P: FloatArray) -> Estimate:
    """A figure of all prompts with Student's interval from its values without each of them (Tukey's jackknife).

    Args:
        whole: the figure of all P prompts.
        without_one_P: the same figure computed without each prompt; P of at least 2.
    """
    prompts = len(without_one_P)
    variance = (prompts - 1) / prompts * float(np.square(without_one_P - without_one_P.mean()).sum())
    return _student(whole, variance, prompts - 1)


def _student(mean: float, variance: float, freedom: float) -> Estimate:
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variance))
    return Estimate(mean, Interval(mean - reach, mean + reach))
