"""What is averaged and compared in a study: pairs, budgets, curves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from study_results import PROBE, run

from nemo_ibtpo.experiments.training_study.arm_estimates import (
    curve,
    estimate_arm,
    scores_along,
    scores_at,
    tokens_at_equal_time,
)
from nemo_ibtpo.experiments.training_study.run_results import Measurement


def test_differences_are_paired_by_seed_and_problem() -> None:
    runs = [run("a", s, [0.1 * s, 0.9, 0.5]) for s in (1, 2, 3)]
    runs += [run("b", s, [0.1 * s + 0.05, 0.95, 0.55]) for s in (1, 2, 3, 4)]
    row = estimate_arm("b", "a", runs, ["t"])
    assert row is not None and row.seeds == {"t": 4}
    assert row.difference is not None and row.difference.mean == pytest.approx(0.05)
    assert row.difference.interval == pytest.approx((0.05, 0.05)), "every pair differs by as much"
    assert row.difference.is_significant
    own = estimate_arm("a", "a", runs, ["t"])
    assert own is not None and own.difference is None
    assert estimate_arm("c", "a", runs, ["t"]) is None
    assert (
        row.training["eff_rate"].mean == 0.5
        and row.training["sampled_tokens_per_prompt"].mean == 85.0
        and row.seconds == 5.0
    )
    assert np.isnan(row.probe_after["cov"].mean) and row.probe_before["cov"].mean == 0.01
    assert row.probe_after["entropy"].interval == pytest.approx((0.2, 0.2))


def test_tasks_side_by_side_take_the_seeds_that_all_have() -> None:
    runs = [run("a", 1, [1.0, 1.0]), run("a", 2, [0.0, 0.0]), run("a", 1, [0.5, 0.5, 0.5, 0.5], task="u")]
    row = estimate_arm("a", "a", runs, ["t", "u"])
    assert row is not None and row.seeds == {"t": 1, "u": 1}
    assert row.final.mean == pytest.approx((2 * 1.0 + 4 * 0.5) / 6)


def test_runs_are_compared_at_the_tokens_of_the_shortest() -> None:
    long = run("b", 1, [1.0])
    long = replace(long, measurements=(long.measurements[0], replace(long.measurements[1], tokens=200)))
    assert scores_at(long, 100) == pytest.approx([0.5])
    row = estimate_arm("b", "a", [long, run("a", 1, [0.75])], ["t"])
    assert row is not None and row.difference is not None
    assert (row.final.mean, row.difference.mean) == pytest.approx((0.5, -0.25))


def test_an_evaluation_after_training_is_what_counts() -> None:
    runs = [
        replace(run("a", 1, [0.5]), final=(0.25, 0.75, 1.0)),
        replace(run("b", 1, [1.0]), final=(0.5, 0.75, 1.0)),
    ]
    row = estimate_arm("b", "a", runs, ["t"])
    assert row is not None and row.difference is not None and row.difference_along is not None
    assert (row.final.mean, row.difference.mean) == pytest.approx((0.75, 0.25 / 3))
    assert row.difference_along.mean == pytest.approx(0.25), "the way there is known from the smaller evaluations"
    assert row.timed is None and row.difference_timed is None


def test_dear_tokens_are_fewer_at_equal_time() -> None:
    runs = [run("cheap", 1, [0.5]), run("dear", 1, [1.0])]  # 100 tokens each
    costs = {"cheap": 1.0, "dear": 4.0}
    assert tokens_at_equal_time(runs, costs) == {"cheap": 100, "dear": 25}
    row = estimate_arm("dear", "cheap", runs, ["t"], costs)
    assert row is not None and row.timed is not None and row.difference_timed is not None
    assert (row.timed.mean, row.difference_timed.mean) == pytest.approx((0.25, -0.25))


def test_the_budget_is_averaged_over_tokens_not_over_evaluations() -> None:
    steps = [(0, (0.0,)), (10, (1.0,)), (100, (1.0,))]
    measured = tuple(Measurement(i, tokens, 0.0, scores, PROBE) for i, (tokens, scores) in enumerate(steps))
    result = run("a", 1, [1.0], measurements=measured)
    assert scores_along(result, 100) == pytest.approx([(10 * 0.5 + 90 * 1.0) / 100])
    assert scores_along(result, 5) == pytest.approx([0.25])
    line = curve([result, run("a", 2, [0.0])], "accuracy", "tokens")
    assert line.x[-1] == 100 and line.mean[-1] == 0.5 and (line.low[-1], line.high[-1]) == (0.0, 1.0)
    assert curve([run("a", 2, [0.0])], "cov", "tokens").x[-1] == 0, "a figure over nothing is left out"
