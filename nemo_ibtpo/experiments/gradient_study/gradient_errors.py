"""How far an arm's gradient is from the reference, for its tokens. Pure numpy.

For a prompt p let g_p be the reference gradient and m_p, V_p the mean and the variance (summed over all entries) of
an arm's gradient over repetitions. A batch holds one tree of every prompt, so its gradient has the mean m = sum m_p
and the variance V = sum V_p, and should be g = sum g_p. An optimizer, or the learning rate, takes any factor out of
a gradient, so an arm is judged by its direction: with the factor c that brings c m nearest to g::

    bias^2   = |c m - g|^2 / |g|^2                         what more tokens do not mend
    noise^2  = c^2 V t / |g|^2                             t: tokens of the arm over those of the arm compared with
    error    = bias^2 + noise^2                            at equal sampled tokens: fewer tokens a tree, more trees

Squared norms of means are too large by the variance of the mean, which is taken out again (V_p / repetitions), that
of the reference included: nothing here shrinks with more repetitions but the intervals. A small bias^2 can therefore
come out below zero. ``prompt_bias``^2 is the same with sum |c m_p - g_p|^2 over sum |g_p|^2: errors of single
prompts, which a batch averages.

Intervals are jackknife intervals over prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_ibtpo.evaluation.statistics import Estimate, jackknife
from nemo_ibtpo.tree.tree import FloatArray


@dataclass(frozen=True, slots=True)
class ArmGradients:
    """What is known of an arm's gradient at every prompt, P of them in the same order for all arms.

    Attributes:
        mean: of the sketches, over repetitions; [P, K].
        variance: of one tree's sketch, unbiased, summed over its K entries; [P].
        repetitions: trees of each prompt.
        tokens: sampled for a tree, mean over repetitions; [P].
        mixed: share of the trees whose rewards differ; [P].
    """

    mean: FloatArray
    variance: FloatArray
    repetitions: int
    tokens: FloatArray
    mixed: FloatArray


@dataclass(frozen=True, slots=True)
class ArmErrors:
    """A row of the table; all figures are relative, see the module.

    Attributes:
        arm: its name.
        tokens: sampled for a tree, mean over prompts.
        mixed: share of trees whose rewards differ.
        scale: length of the mean gradient in the direction of the reference, over the reference's: 1/c.
        bias_squared, prompt_bias_squared, error: see the module.
        error_ratio: error over that of the arm compared with; below 1 is better. None for that arm itself.
    """

    arm: str
    tokens: float
    mixed: float
    scale: Estimate
    bias_squared: Estimate
    prompt_bias_squared: Estimate
    error: Estimate
    error_ratio: Estimate | None


@dataclass(frozen=True, slots=True)
class _Products:
    """The inner products that everything follows from, over all prompts and without each of them; [1 + P] each."""

    with_reference: FloatArray
    own: FloatArray
    reference: FloatArray

    @property
    def scale(self) -> FloatArray:
        return self.own / self.with_reference

    @property
    def bias_squared(self) -> FloatArray:
        return 1 - self.with_reference**2 / (self.own * self.reference)


def arm_errors(arms: Mapping[str, ArmGradients], reference: ArmGradients, compared_with: str) -> list[ArmErrors]:
    """Errors of all arms, that of ``compared_with`` first."""
    tokens = arms[compared_with].tokens
    errors = {name: _errors(arm, reference, tokens) for name, arm in arms.items()}
    rows = []
    for name in [compared_with, *(name for name in arms if name != compared_with)]:
        arm, (batch, prompts, error) = arms[name], errors[name]
        rows.append(
            ArmErrors(
                arm=name,
                tokens=float(arm.tokens.mean()),
                mixed=float(arm.mixed.mean()),
                scale=_estimate(batch.scale),
                bias_squared=_estimate(batch.bias_squared),
                prompt_bias_squared=_estimate(prompts.bias_squared),
                error=_estimate(error),
                error_ratio=None if name == compared_with else _estimate(error / errors[compared_with][2]),
            )
        )
    return rows


def _errors(
    arm: ArmGradients, reference: ArmGradients, compared_tokens_P: FloatArray
) -> tuple[_Products, _Products, FloatArray]:
    """Products of the batch, products of single prompts, and the error; over all prompts and without each."""
    noise_P = arm.variance / arm.repetitions
    reference_noise_P = reference.variance / reference.repetitions
    batch = _Products(
        with_reference=_squares_of_sums(arm.mean, reference.mean),
        own=_squares_of_sums(arm.mean, arm.mean) - _sums(noise_P),
        reference=_squares_of_sums(reference.mean, reference.mean) - _sums(reference_noise_P),
    )
    prompts = _Products(
        with_reference=_sums((arm.mean * reference.mean).sum(axis=1)),
        own=_sums((arm.mean**2).sum(axis=1) - noise_P),
        reference=_sums((reference.mean**2).sum(axis=1) - reference_noise_P),
    )
    cost = _sums(arm.tokens) / _sums(compared_tokens_P)
    factor = batch.with_reference / batch.own
    noise_squared = factor**2 * _sums(arm.variance) * cost / batch.reference
    return batch, prompts, batch.bias_squared + noise_squared


def _sums(values_P: FloatArray) -> FloatArray:
    """The sum over all prompts, then the sums without each of them; [1 + P]."""
    total = values_P.sum()
    return np.concatenate(([total], total - values_P))


def _squares_of_sums(first_PK: FloatArray, second_PK: FloatArray) -> FloatArray:
    """Inner products of the sums over prompts, of all and without each; [1 + P]."""
    first_K, second_K = first_PK.sum(axis=0), second_PK.sum(axis=0)
    without_P = ((first_K - first_PK) * (second_K - second_PK)).sum(axis=1)
    return np.concatenate(([first_K @ second_K], without_P))


def _estimate(values: FloatArray) -> Estimate:
    return jackknife(float(values[0]), values[1:])


def mean_and_variance(sketches_RK: Sequence[FloatArray]) -> tuple[FloatArray, float]:
    """Mean over repetitions, and their unbiased variance summed over entries."""
    stacked = np.array(sketches_RK)
    return stacked.mean(axis=0), float(stacked.var(axis=0, ddof=1).sum())
