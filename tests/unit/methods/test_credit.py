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


def test_unique_tokens_by_hand() -> None:
    tree = hand_tree()
    advantage = np.array([0.0, 2.0, 3.0, -1.0, -4.0, 5.0])
    credit = credit_nodes(tree, StepAdvantages(advantage, advantage, advantage), "token_mean", "unique")
    assert credit.weight[1:].tolist() == [1] * 5
    assert credit.positive[1:].tolist() == [2, 3, 0, 0, 5]
    assert credit.negative[1:].tolist() == [0, 0, 1, 4, 0]
    assert credit.denominator == tree.unique_tokens
    # With one advantage a trajectory, a shared token has the mean over those through it, still on both sides.
    at_leaf = np.array([0.0, 0.0, 3.0, -1.0, -4.0, 5.0])
    credit = credit_nodes(tree, TrajectoryAdvantages(at_leaf), "token_mean", "unique")
    np.testing.assert_allclose(credit.positive[1:], [8 / 3, 3, 0, 0, 5])
    np.testing.assert_allclose(credit.negative[1:], [1 / 3, 0, 1, 4, 0])
    with pytest.raises(ValueError, match="unique goes with token_mean, not with sequence_mean"):
        credit_nodes(tree, TrajectoryAdvantages(at_leaf), "sequence_mean", "unique")


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
    assert left_out.denominator == 0.0


@given(mixed_trees())
def test_the_denominator_is_the_weight_of_the_packed_tokens(tree: Tree) -> None:
    credit = credit_nodes(tree, grpo(tree), "token_mean", "trajectories")
    assert pack_tree(tree, credit).weight.sum() == credit.denominator
