"""TreeRL: the value of a step against the root's and against its parent's (arXiv 2506.11902).

    A(s) = ((V(s) - V(root)) + (V(s) - V(parent(s)))) / sqrt(n(s))

V is the mean reward of the trajectories through a node, n their number. Every trajectory is trained, so that a shared
step counts n times and weighs sqrt(n) in all.

Our choices: the formula of the paper; its published code centres rewards per token and trains with a REINFORCE-like
loss clipped at (1 - eps, 1 + 1.3 eps), where here every advantage meets the same clipped loss.
"""

from __future__ import annotations

import numpy as np

from nemo_ibtpo.config.schema import IBScoreConfig, LossConfig, SamplerConfig
from nemo_ibtpo.methods.advantages import StepAdvantages
from nemo_ibtpo.methods.base import Method
from nemo_ibtpo.methods.constraints import refuse_chains
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


class TreeRL(Method):
    """Each step against the whole tree and against its parent, shared steps less."""

    def advantages(self, tree: Tree, ib_score: IBScoreConfig) -> StepAdvantages:
        """See the module."""
        values_N = tree.values("leaf_mean")
        parent_N = np.array([max(node.parent, ROOT) for node in tree.nodes])
        global_N, local_N = values_N - values_N[ROOT], values_N - values_N[parent_N]
        return StepAdvantages((global_N + local_N) / np.sqrt(tree.n_paths()), global_N, local_N)

    def check(self, sampler: SamplerConfig, loss: LossConfig) -> None:
        """Trees need branches."""
        refuse_chains("TreeRL", "a step with its parent step, which is the same where nothing branches", sampler)
