"""Credit makes one pass over a tree stand for all its trajectories.

The sums are checked by hand and against the duplicated trajectories; that the loss built from them is the same,
gradients included, is tests/unit/losses.
"""

from __future__ import annotations

import numpy as np
import pytest
from advantages_of import grpo, ibtpo
from hypothesis import given
from hypothesis import strategies as st
from strategies import IB, hand_tree, mixed_trees, places, trajectories

from nemo_ibtpo.methods import StepAdvantages, TrajectoryAdvantages
from nemo_ibtpo.methods.credit import credit_nodes
from nemo_ibtpo.tree.packing import pack_tree
from nemo_ibtpo.tree.tree import Tree


def test_token_mean_by_hand() -> None:
    tree = hand_tree()
    advantage = np.array([0.0, 2.0, 3.0, -1.0, -4.0, 5.0])
    credit = credit_nodes(tree, StepAdvantages(advantage, advantage, advantage), "token_mean", "trajectories")
    # Trajectories through a, b, c, d, e: 3, 1, 1, 2, 1.
    assert credit.weight[1:].tolist() == [3, 1, 1, 2, 1]
    assert credit.positive[1:].tolist() == [6, 3, 0, 0, 5]
    assert credit.negative[1:].tolist() == [0, 0, 1, 8, 0]
    assert credit.denominator == 3 + 4 + 1 + 1 + 3  # tokens of the five trajectories


def test_sequence_mean_by_hand() -> None:
    tree = hand_tree()
    # One advantage a trajectory: b 3, c -1, d -4 (drawn twice), e 5; lengths 3, 4, 1, 3 tokens; G = 5.
    at_leaf = np.array([0.0, 0.0, 3.0, -1.0, -4.0, 5.0])
    credit = credit_nodes(tree, TrajectoryAdvantages(at_leaf), "sequence_mean", "trajectories")
    b, c, d, e = 1 / (5 * 3), 1 / (5 * 4), 1 / 5, 1 / (5 * 3)
    np.testing.assert_allclose(credit.weight[1:], [b + c + e, b, c, 2 * d, e])
    # a is shared by trajectories of both signs: they must not cancel, each is clipped on its own side.
    np.testing.assert_allclose(credit.positive[1:], [3 * b + 5 * e, 3 * b, 0, 0, 5 * e])
    np.testing.assert_allclose(credit.negative[1:], [c, 0, c, 2 * 4 * d, 0])
    assert credit.denominator == pytest.approx(1)


@given(mixed_trees(), st.sampled_from(["token_mean", "sequence_mean"]))
def test_sums_equal_the_duplicated_trajectories(tree: Tree, normalization: str) -> None:
    paths = trajectories(tree)
    lengths = [sum(len(tree.nodes[index].tokens) for index in path[1:]) for path in paths]
    units = [1.0 if normalization == "token_mean" else 1 / (len(paths) * length) for length in lengths]
    by_step, by_trajectory = ibtpo(tree, 0.1, IB), grpo(tree)
    for advantages in (by_step, by_trajectory):
        credit = credit_nodes(tree, advantages, normalization, "trajectories")
        for node in tree.nodes[1:]:
            through = [(u, path) for u, path in zip(units, paths, strict=True) if node.index in path]
            a = [
                by_step.total[node.index] if advantages is by_step else by_trajectory.at_leaf[path[-1]]
                for _, path in through
            ]
            sums = [
                sum(u for u, _ in through),
                sum(u * max(x, 0) for (u, _), x in zip(through, a, strict=True)),
                sum(u * max(-x, 0) for (u, _), x in zip(through, a, strict=True)),
            ]
            found = [credit.weight[node.index], credit.positive[node.index], credit.negative[node.index]]
            np.testing.assert_allclose(found, sums, atol=1e-12)
        expected = sum(lengths) if normalization == "token_mean" else 1
        assert credit.denominator == pytest.approx(expected)


def test_sampled_edges_by_hand() -> None:
    tree = hand_tree()
    advantage = np.array([0.0, 2.0, 3.0, -1.0, -4.0, 5.0])
    credit = credit_nodes(tree, StepAdvantages(advantage, advantage, advantage), "token_mean", "unique")
    # Draws of a, b, c, d, e: a was drawn twice and forced once, d was drawn twice.
    assert credit.weight[1:].tolist() == [2, 1, 1, 2, 1]
    assert credit.positive[1:].tolist() == [4, 3, 0, 0, 5]
    assert credit.negative[1:].tolist() == [0, 0, 1, 8, 0]
    assert credit.denominator == tree.sampled_tokens
    # With one advantage a trajectory, a shared token has two thirds of those through it, still on both sides.
    at_leaf = np.array([0.0, 0.0, 3.0, -1.0, -4.0, 5.0])
    credit = credit_nodes(tree, TrajectoryAdvantages(at_leaf), "token_mean", "unique")
    np.testing.assert_allclose(credit.positive[1:], [16 / 3, 3, 0, 0, 5])
    np.testing.assert_allclose(credit.negative[1:], [2 / 3, 0, 1, 8, 0])


def test_hierarchical_weights_by_hand() -> None:
    tree = hand_tree()
    advantage = np.array([0.0, 2.0, 3.0, -1.0, -4.0, 5.0])
    credit = credit_nodes(tree, StepAdvantages(advantage, advantage, advantage), "token_mean", "hierarchical")
    # Of 4 draws at the root a has 2 and d 2; of 3 draws at a each child has 1; times the 5 trajectories.
    np.testing.assert_allclose(credit.weight[1:], [5 / 2, 5 / 6, 5 / 6, 5 / 2, 5 / 6])
    np.testing.assert_allclose(credit.negative[1:], [0, 0, 5 / 6, 10, 0])
    assert credit.denominator == pytest.approx(2 * 5 / 2 + 4 * 5 / 6 + 5 / 2)
    at_leaf = np.array([0.0, 0.0, 3.0, -1.0, -4.0, 5.0])
    credit = credit_nodes(tree, TrajectoryAdvantages(at_leaf), "token_mean", "hierarchical")
    np.testing.assert_allclose(credit.positive[1:], [8 * 5 / 6, 3 * 5 / 6, 0, 0, 5 * 5 / 6])


@given(mixed_trees())
def test_with_hierarchical_weights_the_value_is_the_children_mean(tree: Tree) -> None:
    """A step's share of its parent's weight is its share of the draws, and the weighted reward the children mean."""
    rewards = np.array([node.reward if node.is_leaf else 0.0 for node in tree.nodes])
    credit = credit_nodes(tree, TrajectoryAdvantages(rewards), "token_mean", "hierarchical")
    np.testing.assert_allclose(credit.positive / credit.weight, tree.values("children_mean"), atol=1e-12)
    for node in tree.nodes[1:]:
        drawn = sum(tree.nodes[child].draws for child in tree.nodes[node.parent].children)
        assert credit.weight[node.index] == pytest.approx(credit.weight[node.parent] * node.draws / drawn)


@pytest.mark.parametrize("token_weight", ["unique", "hierarchical"])
@given(tree=mixed_trees(branched=False))
def test_on_chains_every_token_weight_is_grpos(tree: Tree, token_weight: str) -> None:
    """Chains that share steps by chance included."""
    expected = credit_nodes(tree, grpo(tree), "token_mean", "trajectories")
    found = credit_nodes(tree, grpo(tree), "token_mean", token_weight)
    for name in ("weight", "positive", "negative"):
        np.testing.assert_allclose(getattr(found, name)[1:], getattr(expected, name)[1:], rtol=1e-12, atol=1e-12)
    assert found.denominator == pytest.approx(expected.denominator)


def test_other_token_weights_go_with_token_mean() -> None:
    tree = hand_tree()
    for token_weight in ("unique", "hierarchical"):
        with pytest.raises(ValueError, match=f"{token_weight} goes with token_mean, not with sequence_mean"):
            credit_nodes(tree, grpo(tree), "sequence_mean", token_weight)


@given(mixed_trees(), st.data(), st.sampled_from(["token_mean", "sequence_mean"]))
def test_credit_does_not_depend_on_where_steps_are_split(tree: Tree, data: st.DataObject, normalization: str) -> None:
    def by_prefix() -> dict[tuple[int, ...], np.ndarray]:
        at_leaf = np.array([node.reward - 0.5 if node.is_leaf else 0.0 for node in tree.nodes])
        credit = credit_nodes(tree, TrajectoryAdvantages(at_leaf), normalization, "trajectories")
        sums: dict[tuple[int, ...], np.ndarray] = {}
        for node in tree.nodes[1:]:
            before = tree.response_tokens(node.parent)
            for end in range(1, len(node.tokens) + 1):
                values = np.array([getattr(credit, name)[node.index] for name in ("weight", "positive", "negative")])
                prefix = before + node.tokens[:end]
                sums[prefix] = sums.get(prefix, 0) + values
        return sums

    ends = data.draw(places(tree))
    whole = by_prefix()
    tree.split(ends)
    parts = by_prefix()
    assert parts.keys() == whole.keys()
    for prefix, values in whole.items():
        np.testing.assert_allclose(parts[prefix], values, atol=1e-12)


def test_a_tree_left_out_weighs_nothing() -> None:
    tree = hand_tree()
    left_out = credit_nodes(tree, None, "token_mean", "trajectories")
    assert not np.concatenate([left_out.weight, left_out.positive, left_out.negative]).any()
    kept = credit_nodes(tree, grpo(tree), "token_mean", "trajectories")
    assert left_out.denominator == kept.denominator == 12.0  # for loss.denominator=all


@given(mixed_trees())
def test_the_denominator_is_the_weight_of_the_packed_tokens(tree: Tree) -> None:
    credit = credit_nodes(tree, grpo(tree), "token_mean", "trajectories")
    assert pack_tree(tree, credit).weight.sum() == credit.denominator
