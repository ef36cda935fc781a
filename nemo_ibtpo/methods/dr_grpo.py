"""Dr.GRPO: the reward of a trajectory against the mean of its group (arXiv 2503.20783).

    A_i = R_i - mean(R)

Without the division by the standard deviation a prompt that is nearly always or nearly never solved counts no more
than others, and without a division by lengths (``loss.denominator: constant``) a long wrong answer is not punished
less per token than a short one.
"""

from __future__ import annotations

import numpy as np

from nemo_ibtpo.config.schema import IBScoreConfig
from nemo_ibtpo.methods.advantages import TrajectoryAdvantages
from nemo_ibtpo.methods.base import Method
from nemo_ibtpo.tree.tree import Tree


class DrGRPO(Method):
    """Each trajectory against the mean of its group."""

    def advantages(self, tree: Tree, ib_score: IBScoreConfig) -> TrajectoryAdvantages:
        """See the module."""
        mean, at_leaf_N = tree.rewards().mean(), np.zeros(len(tree.nodes))
        for leaf in tree.leaves():
            at_leaf_N[leaf.index] = leaf.reward - mean
        return TrajectoryAdvantages(at_leaf_N)
