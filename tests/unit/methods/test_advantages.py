"""The advantage is what the policy learns; a wrong sign or spread trains quietly in the wrong direction.

By hand on one tree, then the identities that tie IB-TPO to GRPO. Not exercised: how advantages become a loss
(test_credit.py, test_losses.py).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from advantages_of import METHODS, grpo, ibtpo, spo, treepo, treerl
from hypothesis import given
from hypothesis import strategies as st
from strategies import IB, IB_CHILDREN_MEAN, add, hand_tree, mixed_trees, step, trajectories

from nemo_ibtpo.methods import StepAdvantages, TrajectoryAdvantages
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


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


def test_ibtpo_adds_to_the_spread() -> None:
    method = METHODS["ibtpo"].model_copy(update={"std_eps": 0.5})
    assert method.advantages(hand_tree(), IB).global_part[2] == pytest.approx(0.6 / (math.sqrt(0.3) + 0.5))


def test_ibtpo_with_the_children_mean() -> None:
    # Values: root 1/3, a 2/3 (test_tree.py); the spread of the rewards is the same.
    advantages = ibtpo(hand_tree(), 0.1, IB_CHILDREN_MEAN)
    assert advantages.global_part[1] == pytest.approx((2 / 3 - 1 / 3) / math.sqrt(0.3))
    assert advantages.local_part[1] == pytest.approx((2 - 1.2) * 0.5)


def test_grpo_by_hand() -> None:
    at_leaf = grpo(hand_tree()).at_leaf
    std = math.sqrt(0.3)
    np.testing.assert_allclose(at_leaf, [0, 0, 0.6 / std, -0.4 / std, -0.4 / std, 0.6 / std])


def test_dr_grpo_by_hand() -> None:
    at_leaf = METHODS["dr_grpo"].advantages(hand_tree(), IB).at_leaf
    np.testing.assert_allclose(at_leaf, [0, 0, 0.6, -0.4, -0.4, 0.6])


def test_treerl_by_hand() -> None:
    advantages = treerl(hand_tree())
    # Values: root 2/5, a 2/3; V - V(root) and V - V(parent), over the root of 3, 1, 1, 2 (d was drawn twice), 1.
    global_part = [0, 4 / 15, 3 / 5, -2 / 5, -2 / 5, 3 / 5]
    local_part = [0, 4 / 15, 1 / 3, -2 / 3, -2 / 5, 1 / 3]
    np.testing.assert_allclose(advantages.global_part, global_part, atol=1e-12)
    np.testing.assert_allclose(advantages.local_part, local_part, atol=1e-12)
    total = np.add(global_part, local_part) / np.sqrt([5, 3, 1, 1, 2, 1])
    np.testing.assert_allclose(advantages.total, total, atol=1e-12)


def test_spo_by_hand() -> None:
    # Values: root 1/3 (a and d, two draws each), a 2/3, then the rewards.
    advantages = spo(hand_tree())
    np.testing.assert_allclose(advantages.total, [0, 1 / 3, 1 / 3, -2 / 3, -1 / 3, 1 / 3], atol=1e-12)


@given(mixed_trees())
def test_spo_telescopes(tree: Tree) -> None:
    """Along each path it adds up to reward minus value of the prompt: no step is credited twice."""
    total, root = spo(tree).total, tree.values("children_mean")[ROOT]
    for path in trajectories(tree):
        assert total[path].sum() == pytest.approx(tree.nodes[path[-1]].reward - root, abs=1e-12)


def test_treepo_by_hand() -> None:
    # b: over the root (1 - 2/5) and a (1 - 2/3); b itself holds one trajectory. d: over the root -2/5, over d 0.
    raw = [0, 0, 7 / 15, (-2 / 5 - 2 / 3) / 2, -1 / 5, 7 / 15]
    np.testing.assert_allclose(METHODS["treepo"].advantages(hand_tree(), IB).at_leaf, raw, atol=1e-12)
    # Trajectories and their tokens: b 3, c 4, d 1 and 1, e 3.
    per_token = np.repeat([raw[2], raw[3], raw[4], raw[4], raw[5]], [3, 4, 1, 1, 3])
    (advantages,) = treepo([hand_tree()])
    expected = (np.array(raw) - per_token.mean()) / per_token.std(ddof=1)
    expected[:2] = 0  # no trajectory ends there
    np.testing.assert_allclose(advantages.at_leaf, expected, atol=1e-12)


@given(st.lists(mixed_trees(), min_size=1, max_size=3))
def test_treepo_is_white_over_the_tokens_of_the_update(forest: list[Tree]) -> None:
    per_token: list[float] = []
    for tree, advantages in zip(forest, treepo(forest), strict=True):
        for path in trajectories(tree):
            per_token += [advantages.at_leaf[path[-1]]] * tree.depth_tokens(path[-1])
    assert np.mean(per_token) == pytest.approx(0, abs=1e-9)
    assert np.std(per_token, ddof=1) == pytest.approx(1)


def test_on_chains_that_stay_apart_treepo_is_grpo() -> None:
    """Two of four chains are equal: merged they would be a subgroup of their own, without a difference."""

    def chains(merge: bool) -> Tree:
        tree = Tree("p", (1,), merge=merge)
        for token, reward in ((2, 1.0), (2, 1.0), (3, 0.0), (4, 0.0)):
            add(tree, ROOT, [step([token], 0.5), step([5], 0.5)], reward)
        return tree

    apart, merged = chains(merge=False), chains(merge=True)
    ends = [leaf.index for leaf in apart.leaves()]
    assert len(ends) == 4
    raw = METHODS["treepo"].advantages(apart, IB).at_leaf
    np.testing.assert_allclose(raw[ends], [0.5, 0.5, -0.5, -0.5])  # R - mean R
    (white,) = treepo([apart])
    ratio = white.at_leaf[ends] / grpo(apart).at_leaf[ends]
    np.testing.assert_allclose(ratio, ratio[0])  # whitening scales
    merged_raw = METHODS["treepo"].advantages(merged, IB).at_leaf
    assert sorted(merged_raw[[leaf.index for leaf in merged.leaves()]]) == pytest.approx([-0.5, -0.5, 1 / 6])


def test_ibro_has_grpos_advantage() -> None:
    (advantages,) = METHODS["ibro"].of_update([hand_tree()], IB)
    assert isinstance(advantages, TrajectoryAdvantages)
    np.testing.assert_array_equal(advantages.at_leaf, grpo(hand_tree()).at_leaf)


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
@pytest.mark.parametrize("name", METHODS)
def test_equal_rewards_teach_nothing(name: str, reward: float) -> None:
    tree = Tree("p", (1,))
    add(tree, ROOT, [step([2], 0.5), step([3], 0.25)], reward)
    for drawn in range(2):  # a single trajectory has no spread either
        assert METHODS[name].of_update([tree], IB) == [None]
        (kept,) = METHODS[name].model_copy(update={"zero_variance": "keep"}).of_update([tree], IB)
        assert isinstance(kept, StepAdvantages)
        for values in (kept.total, kept.global_part, kept.local_part):
            assert values.tolist() == [0.0] * len(tree.nodes)
        add(tree, ROOT, [step([2], 0.5), step([4 + drawn], 0.25)], reward)


@pytest.mark.parametrize("name", METHODS)
def test_a_tree_of_equal_rewards_does_not_change_the_others(name: str) -> None:
    equal = Tree("p", (1,))
    add(equal, ROOT, [step([2], 0.5)], 1.0)
    method = METHODS[name]
    first, none, second = method.of_update([hand_tree(), equal, hand_tree()], IB)
    expected, _ = method.of_update([hand_tree(), hand_tree()], IB)
    assert none is None
    for found in (first, second):
        field = "total" if isinstance(expected, StepAdvantages) else "at_leaf"
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
