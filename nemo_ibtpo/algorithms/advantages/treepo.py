"""``treepo``: the reward of a trajectory against the means of all subtrees it lies in (TreePO, arXiv 2508.17445).

    A_i = mean over the nodes v on the path of i that hold several trajectories of (R_i - mean R below v)

and then whitened over the tokens of the optimizer step: minus their mean, divided by their unbiased standard
deviation, a trajectory counted once per token. The root always holds several.

Declared: every node of a path is a subgroup, as every segment of TreePO's is, also where nothing branched there;
groups weigh the same, whatever their size; trees of equal rewards take no part in the whitening.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemo_ibtpo.algorithms.advantages.kinds import TrajectoryAdvantages
from nemo_ibtpo.tree.tree import FloatArray, Tree


def treepo(trees: Sequence[Tree]) -> list[TrajectoryAdvantages]:
    """TreePO's advantages of the trees of an optimizer step; the rewards of each must differ."""
    if not trees:
        return []
    ends = [(t, leaf) for t, tree in enumerate(trees) for leaf in tree.leaves()]
    raw = [subgroup_advantages(tree) for tree in trees]
    raw_L = np.array([raw[t][leaf.index] for t, leaf in ends])
    tokens_L = np.array([leaf.draws * trees[t].depth_tokens(leaf.index) for t, leaf in ends])
    mean = np.average(raw_L, weights=tokens_L)
    std = np.sqrt((tokens_L * (raw_L - mean) ** 2).sum() / (tokens_L.sum() - 1))
    whitened = [np.zeros(len(tree.nodes)) for tree in trees]
    for (t, leaf), value in zip(ends, raw_L, strict=True):
        whitened[t][leaf.index] = (value - mean) / std
    return [TrajectoryAdvantages(at_leaf_N) for at_leaf_N in whitened]


def subgroup_advantages(tree: Tree) -> FloatArray:
    """The advantage before whitening of the trajectory that ends in each node; [N], 0 where none does."""
    values_N, shared_N = tree.values("leaf_mean"), tree.n_paths() > 1
    at_leaf_N = np.zeros(len(tree.nodes))
    for leaf in tree.leaves():
        groups = [node for node in tree.path(leaf.index) if shared_N[node]]
        at_leaf_N[leaf.index] = (values_N[leaf.index] - values_N[groups]).mean()
    return at_leaf_N
