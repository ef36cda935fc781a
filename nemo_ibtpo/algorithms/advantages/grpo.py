"""``grpo``: the reward of a trajectory against those of its whole group (arXiv 2402.03300).

    A_i = (R_i - mean(R)) / std(R)

Declared: the standard deviation is unbiased (ddof = 1). ``ibro`` (IBRO, arXiv 2507.18391) has the same advantage;
what it adds, sum_t A_t H_t, is a term of the loss (:mod:`nemo_ibtpo.algorithms.losses`).
"""

from __future__ import annotations

import numpy as np

from nemo_ibtpo.algorithms.advantages.kinds import TrajectoryAdvantages
from nemo_ibtpo.tree.tree import Tree


def grpo(tree: Tree) -> TrajectoryAdvantages:
    """GRPO's group-relative advantage; the rewards must differ."""
    rewards_G = tree.rewards()
    mean, std = rewards_G.mean(), rewards_G.std(ddof=1)
    at_leaf_N = np.zeros(len(tree.nodes))
    for leaf in tree.leaves():
        at_leaf_N[leaf.index] = (leaf.reward - mean) / std
    return TrajectoryAdvantages(at_leaf_N)
