"""What is logged of trees and advantages, by hand on one small tree.

Why this matters: these figures are how a run is judged. Rewards, IB-Score and Cov are in ``tree/test_ib_score.py``.
Not exercised: what ranks exchange, which ``tests/e2e/test_train.py`` does.
"""

from __future__ import annotations

import numpy as np
import pytest
from strategies import IB, add, hand_tree, step

from nemo_ibtpo.methods import StepAdvantages, TrajectoryAdvantages, per_node
from nemo_ibtpo.training.metrics import advantage_metrics, engine_metrics, sampling_metrics
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


def grown_tree() -> Tree:
    """Branches at step 1 in rounds 1 and 2, below the step of round 1 in round 3, and at the prompt in round 3."""
    tree = Tree("t", (1,))
    add(tree, ROOT, [step([1, 2], 0.5), step([3], 0.5)], 1.0)
    add(tree, 1, [step([4], 0.5), step([5], 0.5)], 0.0, round=1)
    add(tree, 1, [step([6], 0.5)], 0.0, round=2)
    add(tree, 3, [step([7], 0.5)], 0.0, round=3)
    add(tree, 3, [step([9], 0.5)], 0.0, round=3)  # the same place in the same round
    add(tree, ROOT, [step([8], 0.5)], 0.0, round=3)
    return tree


def test_branches_are_counted_once_a_round_at_their_depth() -> None:
    metrics = sampling_metrics([grown_tree()], IB)
    assert metrics["train/branches_per_tree"] == 4
    assert metrics["train/branch_depth_steps"] == (1 + 1 + 2 + 0) / 4
    assert metrics["train/branch_depth_tokens"] == (2 + 2 + 3 + 0) / 4
    straight = Tree("straight", (1,))
    add(straight, ROOT, [step([1], 0.5)], 1.0)
    metrics = sampling_metrics([straight], IB)
    assert metrics["train/branches_per_tree"] == 0
    assert "train/branch_depth_steps" not in metrics


def test_advantages_of_steps_and_of_trajectories() -> None:
    tree = hand_tree()
    total = np.array([9.0, 1.0, 2.0, 3.0, 4.0, 5.0])  # the prompt's does not count
    steps = StepAdvantages(total, total / 2, -total)
    metrics = advantage_metrics([tree, tree], [steps, None])
    assert metrics["train/dropped_groups"] == 1
    assert [metrics[f"advantage/total_{name}"] for name in ("mean", "min", "max")] == [3, 1, 5]
    assert metrics["advantage/total_std"] == pytest.approx(np.sqrt(2))
    assert metrics["advantage/global_part_max"] == 2.5
    assert metrics["advantage/local_part_min"] == -5

    leaves = list(tree.leaves())
    at_leaf = np.zeros(len(tree.nodes))
    at_leaf[[leaf.index for leaf in leaves]] = range(1, len(leaves) + 1)
    per_draw = np.repeat(range(1, len(leaves) + 1), [leaf.draws for leaf in leaves])
    metrics = advantage_metrics([tree], [TrajectoryAdvantages(at_leaf)])
    assert metrics["advantage/total_mean"] == per_draw.mean()
    assert "advantage/global_part_mean" not in metrics
    shown = per_node(tree, TrajectoryAdvantages(at_leaf))
    assert shown.total[ROOT] == per_draw.mean()
    assert shown.total[leaves[0].index] == 1
    assert np.isnan(shown.global_part).all()


def test_prefix_hits() -> None:
    assert engine_metrics(25, 75) == {"perf/prefix_hit_rate": 0.75}
    assert engine_metrics(0, 0) == {}
