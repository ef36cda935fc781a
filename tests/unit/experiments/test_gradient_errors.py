"""Errors of gradients against simulated gradients whose bias, variance and direction are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nemo_ibtpo.experiments.gradient_study.gradient_errors import ArmGradients, arm_errors, mean_and_variance

PROMPTS, SIZE = 60, 50


def simulate(
    truth_PK: np.ndarray, repetitions: int, noise: float, rng: np.random.Generator, tokens: float = 100.0
) -> ArmGradients:
    """Gradients with independent normal noise of this standard deviation in every entry."""
    measured = [mean_and_variance(list(own_K + noise * rng.normal(size=(repetitions, SIZE)))) for own_K in truth_PK]
    return ArmGradients(
        mean=np.array([mean for mean, _ in measured]),
        variance=np.array([variance for _, variance in measured]),
        repetitions=repetitions,
        tokens=np.full(PROMPTS, tokens),
        mixed=np.ones(PROMPTS),
    )


def test_bias_scale_and_noise_are_found_through_the_noise() -> None:
    """The arm's mean gradient is 2 g plus something at right angles to g, a quarter as long as 2 g."""
    rng = np.random.default_rng(0)
    direction_K = np.eye(SIZE)[0]
    reference_PK = np.tile(direction_K, (PROMPTS, 1))
    arm_PK = 2 * reference_PK + 0.5 * np.eye(SIZE)[1]
    rows = []
    for _ in range(40):
        reference = simulate(reference_PK, 2, 0.3, rng)
        arms = {"exact": simulate(reference_PK, 8, 1.0, rng), "off": simulate(arm_PK, 8, 2.0, rng, tokens=50.0)}
        rows.append(arm_errors(arms, reference, "exact"))

    def mean(name: str, place: int) -> float:
        return float(np.mean([getattr(own[place], name).mean for own in rows]))

    bias = 1 - 1 / (1 + 0.25**2)
    scale = 2 * (1 + 0.25**2)  # |m|^2 / <m, g>
    assert rows[0][0].arm == "exact" and rows[0][0].error_ratio is None
    assert mean("bias_squared", 0) == pytest.approx(0, abs=0.005)
    assert mean("bias_squared", 1) == pytest.approx(bias, abs=0.01)
    assert mean("prompt_bias_squared", 1) == pytest.approx(bias, abs=0.03)
    assert mean("scale", 1) == pytest.approx(scale, rel=0.03)
    # Of a batch: the variance grows with the number of prompts, the squared length with its square.
    noise = SIZE / PROMPTS
    assert mean("error", 0) == pytest.approx(noise, rel=0.05)
    # Four times the variance, over scale^2, and half the tokens.
    assert mean("error", 1) == pytest.approx(bias + 4 * noise / scale**2 / 2, rel=0.08)
    ratios = [own[1].error_ratio for own in rows]
    expected = (bias + 2 * noise / scale**2) / noise
    covered = [
        r is not None and r.interval is not None and r.interval.low <= expected <= r.interval.high for r in ratios
    ]
    assert sum(covered) >= 34


def test_what_an_arm_does_to_single_prompts_averages_over_a_batch() -> None:
    rng = np.random.default_rng(1)
    reference_PK = np.tile(np.eye(SIZE)[0], (PROMPTS, 1))
    signs_P = np.where(np.arange(PROMPTS) % 2, 1.0, -1.0)
    arm_PK = reference_PK + signs_P[:, None] * np.eye(SIZE)[1]
    reference = simulate(reference_PK, 2, 0.01, rng)
    [row] = arm_errors({"a": simulate(arm_PK, 4, 0.01, rng)}, reference, "a")
    assert row.bias_squared.mean == pytest.approx(0, abs=1e-3)
    assert row.prompt_bias_squared.mean == pytest.approx(0.5, abs=0.01)  # at right angles and as long


def test_a_factor_and_the_reference_of_all_arms_do_not_change_a_ratio() -> None:
    rng = np.random.default_rng(2)
    truth_PK = rng.normal(size=(PROMPTS, SIZE)) + 1
    reference = simulate(truth_PK, 2, 0.5, rng)
    first, second = simulate(truth_PK, 4, 1.0, rng), simulate(truth_PK, 4, 2.0, rng)
    larger = replace(second, mean=7 * second.mean, variance=49 * second.variance)
    ratio = arm_errors({"a": first, "b": second}, reference, "a")[1].error_ratio
    same = arm_errors({"a": first, "b": larger}, reference, "a")[1].error_ratio
    assert ratio is not None and same is not None and ratio.mean == pytest.approx(same.mean)
