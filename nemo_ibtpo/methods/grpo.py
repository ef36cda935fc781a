"""GRPO: the reward of a trajectory against those of its whole group (arXiv 2402.03300).

    A_i = (R_i - mean(R)) / std(R)

Our choice: the standard deviation is unbiased (ddof = 1).
"""

from __future__ import annotations

import numpy as np

from nemo_ibtpo.config.schema import IBScoreConfig
from nemo_ibtpo.methods.advantages import TrajectoryAdvantages
from nemo_ibtpo.methods.base import Method
from nemo_ibtpo.tree.tree import Tree


class GRPO(Method):
    """Each trajectory against its group; on a tree with branches it trains every trajectory in the same way."""

    def advantages(self, tree: Tree, ib_score: IBScoreConfig) -> TrajectoryAdvantages:
        """See the module."""
        rewards_G = tree.rewards()
        mean, std = rewards_G.mean(), rewards_G.std(ddof=1)
        at_leaf_N = np.zeros(len(tree.nodes))
        for leaf in tree.leaves():
            at_leaf_N[leaf.index] = (leaf.reward - mean) / std
        return TrajectoryAdvantages(at_leaf_N)
