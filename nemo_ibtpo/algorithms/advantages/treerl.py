"""``treerl``: the value of a step against the root's and against its parent's (TreeRL, arXiv 2506.11902).

    A(s) = ((V(s) - V(root)) + (V(s) - V(parent(s)))) / sqrt(n(s))

V is the mean reward of the trajectories through a node, n their number. Every trajectory is trained, so that a shared
step counts n times and weighs sqrt(n) in all.

Declared: the formula of the paper; its published code centres rewards per token and trains with a REINFORCE-like loss
clipped at (1 - eps, 1 + 1.3 eps), where here every advantage meets the same clipped loss.
"""

from __future__ import annotations

import numpy as np

from nemo_ibtpo.algorithms.advantages.kinds import StepAdvantages
from nemo_ibtpo.tree.tree import ROOT, Tree


def treerl(tree: Tree) -> StepAdvantages:
    """TreeRL's process reward as the advantage of each step."""
    values_N = tree.values("leaf_mean")
    parent_N = np.array([max(node.parent, ROOT) for node in tree.nodes])
    global_N, local_N = values_N - values_N[ROOT], values_N - values_N[parent_N]
    return StepAdvantages((global_N + local_N) / np.sqrt(tree.n_paths()), global_N, local_N)
