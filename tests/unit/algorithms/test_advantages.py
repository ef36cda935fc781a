"""The advantage is what the policy learns; a wrong sign or spread trains quietly in the wrong direction.

By hand on one tree, then the identities that tie IB-TPO to GRPO. Not exercised: how advantages become a loss
(test_credit.py, test_losses.py).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from strategies import IB, IB_CHILDREN_MEAN, add, hand_tree, mixed_trees, step, trajectories

from nemo_ibtpo.algorithms.advantages import (
    StepAdvantages,
    TrajectoryAdvantages,
    compute_advantages,
    grpo,
    ibtpo,
)
from nemo_ibtpo.config.schema import AdvantageConfig
from nemo_ibtpo.tree.tree import ROOT, Tree

IBTPO = AdvantageConfig(name="ibtpo", ib_coef=0.1, zero_variance="drop")
GRPO = AdvantageConfig(name="grpo", ib_coef=0.1, zero_variance="drop")


def test_ibtpo_by_hand() -> None:
    # Rewards 1, 0, 0, 0, 1: mean 0.4, squared deviations 2 * 0.36 + 3 * 0.16 = 1.2, over 4 is 0.3.
    advantages = ibtpo(hand_tree(), 0.1, IB)
    std = math.sqrt(0.3)
    global_part = [0, (2 / 3 - 0.4) / std, 0.6 / std, -0.4 / std, -0.4 / std, 0.6 / std]
    # (value / parent's value - 1.2) * pi: a (5/3 - 1.2) 0.5, b (1.5 - 1.2) 0.8, c -1.2 * 0.6, ...
    local_part = [0, 7 / 15 * 0.5, 0.3 * 0.8, -1.2 * 0.6, -1.2 * 0.25, 0.3 * 0.1]
    np.testing.assert_allclose(advantages.global_part, global_part, atol=1e-12)
    np.testing.assert_allclose(advantages.local_part, local_part)
    np.testing.assert_allclose(advantages.total, np.add(global_part, np.multiply(0.1, local_part)))


def test_ibtpo_with_the_children_mean() -> None:
    # Values: root 1/3, a 2/3 (test_tree.py); the spread of the rewards is the same.
    advantages = ibtpo(hand_tree(), 0.1, IB_CHILDREN_MEAN)
    assert advantages.global_part[1] == pytest.approx((2 / 3 - 1 / 3) / math.sqrt(0.3))
    assert advantages.local_part[1] == pytest.approx((2 - 1.2) * 0.5)


def test_grpo_by_hand() -> None:
    at_leaf = grpo(hand_tree()).at_leaf
    std = math.sqrt(0.3)
    np.testing.assert_allclose(at_leaf, [0, 0, 0.6 / std, -0.4 / std, -0.4 / std, 0.6 / std])


@given(mixed_trees(branched=False))
def test_without_branches_the_global_part_is_grpo(tree: Tree) -> None:
    """At every leaf; a step that trajectories share by chance gets their mean."""
    global_part, at_leaf = ibtpo(tree, 0.1, IB).global_part, grpo(tree).at_leaf
    for node in tree.nodes[1:]:
        through = [at_leaf[path[-1]] for path in trajectories(tree) if node.index in path]
        assert global_part[node.index] == pytest.approx(np.mean(through), abs=1e-12)
        if node.is_leaf:
            assert global_part[node.index] == pytest.approx(at_leaf[node.index], abs=1e-12)


@given(mixed_trees())
def test_advantages_are_centred_and_scaled(tree: Tree) -> None:
    """GRPO's have mean 0 and unbiased variance 1; so has the global part over the leaves."""
    ends = [path[-1] for path in trajectories(tree)]
    for per_node in (grpo(tree).at_leaf, ibtpo(tree, 0.0, IB).total):
        assert per_node[ends].mean() == pytest.approx(0, abs=1e-9)
        assert per_node[ends].var(ddof=1) == pytest.approx(1)


@given(mixed_trees())
def test_every_step_of_the_tree_has_a_finite_advantage(tree: Tree) -> None:
    advantages = ibtpo(tree, 0.1, IB)
    for values in (advantages.total, advantages.global_part, advantages.local_part):
        assert values.shape == (len(tree.nodes),)
        assert np.isfinite(values).all()
        assert values[ROOT] == 0


@pytest.mark.parametrize("reward", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("config", [IBTPO, GRPO])
def test_equal_rewards_teach_nothing(config: AdvantageConfig, reward: float) -> None:
    tree = Tree("p", (1,))
    add(tree, ROOT, [step([2], 0.5), step([3], 0.25)], reward)
    for drawn in range(2):  # a single trajectory has no spread either
        assert compute_advantages(tree, config, IB) is None
        kept = compute_advantages(tree, replace(config, zero_variance="keep"), IB)
        assert isinstance(kept, StepAdvantages)
        for values in (kept.total, kept.global_part, kept.local_part):
            assert values.tolist() == [0.0] * len(tree.nodes)
        add(tree, ROOT, [step([2], 0.5), step([4 + drawn], 0.25)], reward)


def test_the_configured_advantage_is_computed() -> None:
    tree = hand_tree()
    by_step = compute_advantages(tree, replace(IBTPO, ib_coef=0.3), IB)
    assert isinstance(by_step, StepAdvantages)
    np.testing.assert_array_equal(by_step.total, ibtpo(tree, 0.3, IB).total)
    by_trajectory = compute_advantages(tree, GRPO, IB)
    assert isinstance(by_trajectory, TrajectoryAdvantages)
    np.testing.assert_array_equal(by_trajectory.at_leaf, grpo(tree).at_leaf)
