"""``spo``: the value of a step against its parent's (SPO-tree, arXiv 2505.23564).

    A(s) = V(s) - V(parent(s)),   V of a leaf its reward, V of any other node the mean over its children

SPO trains each edge of the tree once, which is ``loss.token_weight: unique``; a child counts once per draw.

Declared: the variant that SPO calls "rloo" (the other one divides by the standard deviation among siblings); edges of
advantage 0, which SPO leaves out, stay, where they matter to the denominator and the KL term only.
"""

from __future__ import annotations

import numpy as np

from nemo_ibtpo.algorithms.advantages.kinds import StepAdvantages
from nemo_ibtpo.tree.tree import ROOT, Tree


def spo(tree: Tree) -> StepAdvantages:
    """SPO's segment advantage."""
    values_N = tree.values("children_mean")
    local_N = values_N - values_N[[max(node.parent, ROOT) for node in tree.nodes]]
    return StepAdvantages(local_N, np.zeros_like(local_N), local_N)
