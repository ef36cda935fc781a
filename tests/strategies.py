"""Trees for tests: one small enough to compute by hand, random ones, and a way to build others.

Random trees have a vocabulary of two tokens and short steps, so that sampled steps often repeat and merge, and
they branch at any step, so that draws and trajectories differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from nemo_ibtpo.config.schema import IBScoreConfig
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree

IB = IBScoreConfig(beta=5.0, step_probability="geometric_mean", value_estimator="leaf_mean", selection="paper")
IB_CHILDREN_MEAN = IBScoreConfig(
    beta=5.0, step_probability="geometric_mean", value_estimator="children_mean", selection="paper"
)


def step(tokens: Sequence[int], probability: float) -> tuple[list[int], list[float]]:
    """A step whose tokens all have the same probability."""
    return list(tokens), [math.log(probability)] * len(tokens)


def add(tree: Tree, branch_node: int, steps: Sequence[Any], reward: float, **changes: Any) -> int:
    """Insert a trajectory, set its reward and return its leaf."""
    leaf = tree.insert(branch_node, steps, **{"finish_reason": "eos", "round": 0, **changes})
    tree.set_reward(leaf, reward)
    return leaf


def hand_tree() -> Tree:
    """Five trajectories over five steps; draws in brackets, probability and reward behind::

    root (7, 8)
    |-- 1: a (1, 2)     [2] pi 0.5
    |   |-- 2: b (3)    [1] pi 0.8, R 1
    |   |-- 3: c (4, 5) [1] pi 0.6 = sqrt(0.4 * 0.9), R 0
    |   `-- 5: e (9)    [1] pi 0.1, R 1    branched at a: no draw for a
    `-- 4: d (6)        [2] pi 0.25, R 0   sampled twice
    """
    tree = Tree("hand", (7, 8))
    a, d = step([1, 2], 0.5), step([6], 0.25)
    add(tree, ROOT, [a, step([3], 0.8)], 1.0)
    add(tree, ROOT, [a, ([4, 5], [math.log(0.4), math.log(0.9)])], 0.0)
    add(tree, ROOT, [d], 0.0)
    add(tree, ROOT, [d], 0.0)
    add(tree, 1, [step([9], 0.1)], 1.0, round=1)
    return tree


@st.composite
def trees(draw: st.DrawFn, branched: bool = True, min_trajectories: int = 1) -> Tree:
    """Trees with all rewards known; without ``branched`` every trajectory starts at the root."""
    token, logprob = st.integers(0, 1), st.floats(-3.0, 0.0)
    tree = Tree(draw(st.sampled_from(["p", "q"])), draw(st.lists(token, min_size=1, max_size=3)))
    steps = st.lists(st.lists(token, min_size=1, max_size=3), min_size=1, max_size=4)
    for number in range(draw(st.integers(min_trajectories, 6))):
        candidates = [node.index for node in tree.nodes if not node.is_leaf]
        branch_node = draw(st.sampled_from(candidates)) if branched and number else ROOT
        sampled = [(tokens, [draw(logprob) for _ in tokens]) for tokens in draw(steps)]
        leaf = tree.insert(branch_node, sampled, "eos", round=number)
        if tree.nodes[leaf].reward is None:
            tree.set_reward(leaf, draw(st.sampled_from([0.0, 0.25, 1.0])))
    return tree


@st.composite
def mixed_trees(draw: st.DrawFn, branched: bool = True) -> Tree:
    """Trees whose rewards differ."""
    tree = draw(trees(branched=branched, min_trajectories=2).filter(lambda t: len(list(t.leaves())) > 1))
    leaves = list(tree.leaves())
    for leaf in leaves:
        leaf.reward = draw(st.sampled_from([0.0, 0.25, 1.0]))
    leaves[0].reward = 0.0 if leaves[1].reward else 1.0
    return tree


@st.composite
def places(draw: st.DrawFn, tree: Tree) -> list[tuple[int, int]]:
    """Where to split a tree; its rewards become a function of the responses, as a verifier's are."""
    for leaf in tree.leaves():
        leaf.reward = float(sum(tree.response_tokens(leaf.index)) % 2)
    ends = [(node.index, end + 1) for node in tree.nodes[1:] for end in range(len(node.tokens))]
    return draw(st.lists(st.sampled_from(ends), min_size=1, max_size=4))


def trajectories(tree: Tree) -> list[list[int]]:
    """Node indices of every trajectory, from the root, a leaf once per draw: the tree without sharing."""
    paths = []
    for node in tree.nodes:
        if node.finish_reason is not None:
            path, current = [node.index], node
            while current.parent >= 0:
                current = tree.nodes[current.parent]
                path.insert(0, current.index)
            paths += [path] * node.draws
    return paths
