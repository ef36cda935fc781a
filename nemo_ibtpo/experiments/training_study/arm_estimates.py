"""What the runs of a study say of its arms: means over seeds and problems with intervals. Pure numpy.

A score is known for every seed and every held-out problem; intervals are over both.

Runs end with the step in which their budget is spent, so that some have sampled up to a step more than others. All
are compared at the tokens of the one that has sampled least, between two evaluations by interpolation; or by an
evaluation after training where there is one, which is larger and forgives that step. At equal simulated time they are
compared where the run that would have ended first ends.

Differences between arms are taken seed by seed and problem by problem: runs of a seed see the same problems in the
same order and are evaluated on the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_ibtpo.evaluation.statistics import Estimate, over_seeds, over_seeds_and_problems
from nemo_ibtpo.experiments.training_study.run_results import PROBE, TRAINING, Measurement, RunResult
from nemo_ibtpo.experiments.training_study.tree_shapes import NAMES
from nemo_ibtpo.tree.tree import FloatArray

GRID_POINTS = 21  # of curves over a budget


@dataclass(frozen=True, slots=True)
class ArmEstimate:
    """One row of a table.

    Attributes:
        arm: its name.
        seeds: it is based on, by task.
        base, final: accuracy before training and after it, at the compared number of tokens.
        timed: accuracy at equal simulated time; None if no time was simulated.
        along: accuracy averaged over the budget, which tells fast arms from slow ones.
        difference, difference_along, difference_timed: ``final``, ``along`` and ``timed`` minus those of the arm that
            it is compared with, on the seeds that both have; None for that arm itself.
        steps, seconds: mean number and mean wall time of the training steps of a run.
        training: means over the steps of a run, of the trees that it trained on; intervals over seeds.
        trees: means over runs of the shape of the trees that they kept (``shapes``); a share without steps is nan.
        probe_before, probe_after: what the probe trees show before and after training; intervals over seeds.
        cov_difference: Cov after training minus that of the arm it is compared with, on the seeds that both have.
    """

    arm: str
    seeds: Mapping[str, int]
    base: Estimate
    final: Estimate
    along: Estimate
    timed: Estimate | None
    difference: Estimate | None
    difference_along: Estimate | None
    difference_timed: Estimate | None
    steps: float
    seconds: float
    training: Mapping[str, Estimate]
    trees: Mapping[str, float]
    probe_before: Mapping[str, Estimate]
    probe_after: Mapping[str, Estimate]
    cov_difference: Estimate | None


def equal_tokens(runs: Sequence[RunResult]) -> int:
    """The tokens at which runs are compared: those of the run that has sampled least."""
    return min(run.measurements[-1].tokens for run in runs)


def scores_at(run: RunResult, tokens: float) -> FloatArray:
    """Each problem's score at so many sampled tokens, between two evaluations by interpolation; [P]."""
    tokens_M, scores_MP = _measured(run)
    return np.array([np.interp(tokens, tokens_M, scores_M) for scores_M in scores_MP.T])


def scores_along(run: RunResult, tokens: float) -> FloatArray:
    """Each problem's score averaged over the tokens up to so many (trapezoid rule); [P]."""
    tokens_M, scores_MP = _measured(run)
    before = tokens_M < tokens
    tokens_M = np.append(tokens_M[before], tokens)
    scores_MP = np.vstack([scores_MP[before], scores_at(run, tokens)])
    widths = np.diff(tokens_M)
    return np.asarray((widths[:, None] * (scores_MP[1:] + scores_MP[:-1]) / 2).sum(axis=0) / tokens)


def tokens_at_equal_time(runs: Sequence[RunResult], costs: Mapping[str, float]) -> dict[str, float]:
    """The tokens of each arm when the run that ends first would end.

    Args:
        runs: of the study.
        costs: simulated seconds per sampled token of each arm.
    """
    seconds = min(run.measurements[-1].tokens * costs[run.arm] for run in runs)
    return {arm: seconds / cost for arm, cost in costs.items()}


def estimate_arm(
    arm: str,
    baseline: str,
    runs: Sequence[RunResult],
    tasks: Sequence[str],
    costs: Mapping[str, float] | None = None,
) -> ArmEstimate | None:
    """The row of an arm, over all given tasks; None if one of them has no run of it.

    Problems of several tasks are put side by side, on the seeds that all of them have.

    Args:
        arm: which arm.
        baseline: the arm that it is compared with.
        runs: of the study.
        tasks: the tasks that count.
        costs: simulated seconds per sampled token of each arm, if they are known.
    """
    by_place = {(run.task, run.arm, run.seed): run for run in runs}
    tokens = equal_tokens(runs)
    tokens_then = tokens_at_equal_time(runs, costs) if costs else {}

    def seeds_of(*arms: str) -> list[int]:
        seeds = {run.seed for run in runs}
        return sorted(s for s in seeds if all((task, name, s) in by_place for task in tasks for name in arms))

    def stack(name: str, seeds: Sequence[int], kind: str) -> FloatArray:
        where = tokens_then[name] if kind == "timed" else tokens
        return np.array([np.concatenate([_scores(by_place[t, name, s], kind, where) for t in tasks]) for s in seeds])

    def probed(name: str, seeds: Sequence[int], figure: str, place: int) -> FloatArray:
        """A figure of the first (0) or last (-1) probe trees of each seed, mean over tasks; [S]."""
        values_ST = [[by_place[t, name, s].measurements[place].probe[figure] for t in tasks] for s in seeds]
        return np.array(values_ST, dtype=np.float64).mean(axis=1)  # None becomes nan

    def trained(seeds: Sequence[int], name: str) -> FloatArray:
        """A figure of the training trees, mean over the steps of each seed's runs and over tasks; [S]."""
        return np.array([np.mean([_mean_known(by_place[t, arm, s].training[name]) for t in tasks]) for s in seeds])

    own = seeds_of(arm)
    if not own:
        return None
    shared = seeds_of(arm, baseline) if arm != baseline else []
    differences = {
        kind: over_seeds_and_problems(stack(arm, shared, kind) - stack(baseline, shared, kind)) if shared else None
        for kind in ("final", "along", *(["timed"] if costs else []))
    }
    mine = [by_place[task, arm, seed] for task in tasks for seed in own]
    return ArmEstimate(
        arm=arm,
        seeds={task: sum(run.task == task for run in mine) for task in tasks},
        base=over_seeds_and_problems(stack(arm, own, "base")),
        final=over_seeds_and_problems(stack(arm, own, "final")),
        along=over_seeds_and_problems(stack(arm, own, "along")),
        timed=over_seeds_and_problems(stack(arm, own, "timed")) if costs else None,
        difference=differences["final"],
        difference_along=differences["along"],
        difference_timed=differences.get("timed"),
        steps=float(np.mean([run.measurements[-1].step for run in mine])),
        seconds=float(np.mean([run.measurements[-1].seconds for run in mine])),
        training={name: over_seeds(trained(own, name)) for name in TRAINING},
        trees={name: _mean_known([run.trees.get(name) for run in mine]) for name in NAMES},
        probe_before={name: over_seeds(probed(arm, own, name, 0)) for name in PROBE},
        probe_after={name: over_seeds(probed(arm, own, name, -1)) for name in PROBE},
        cov_difference=(
            over_seeds(probed(arm, shared, "cov", -1) - probed(baseline, shared, "cov", -1)) if shared else None
        ),
    )


@dataclass(frozen=True, slots=True)
class Curve:
    """A mean over seeds along a budget.

    Attributes:
        x: tokens or seconds.
        mean: of the seeds.
        low, high: smallest and largest of the seeds.
    """

    x: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray


def curve(runs: Sequence[RunResult], value: str, over: str) -> Curve:
    """The runs of an arm on a task as one curve, interpolated at the same places, up to where the shortest run ends.

    Args:
        runs: one a seed.
        value: ``accuracy`` or the name of a probe figure.
        over: ``tokens`` or ``seconds``.
    """
    lines = []
    for run in runs:
        points = [(getattr(one, over), _value(one, value)) for one in run.measurements]
        known = [(x, y) for x, y in points if y is not None]
        lines.append(np.array(known, dtype=np.float64).T)
    grid = np.linspace(0.0, min(x[-1] for x, _ in lines), GRID_POINTS)
    values_SG = np.array([np.interp(grid, x, y) for x, y in lines])
    return Curve(grid, values_SG.mean(axis=0), values_SG.min(axis=0), values_SG.max(axis=0))


def _value(one: Measurement, value: str) -> float | None:
    return float(np.mean(one.scores)) if value == "accuracy" else one.probe[value]


def _measured(run: RunResult) -> tuple[FloatArray, FloatArray]:
    """Tokens [M] and scores [M, P] of the evaluations."""
    tokens_M = np.array([one.tokens for one in run.measurements], dtype=np.float64)
    return tokens_M, np.array([one.scores for one in run.measurements])


def _scores(run: RunResult, kind: str, tokens: float) -> FloatArray:
    if kind == "along":
        return scores_along(run, tokens)
    if kind == "final" and run.final is not None:
        return np.array(run.final)
    return scores_at(run, 0 if kind == "base" else tokens)


def _mean_known(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")
