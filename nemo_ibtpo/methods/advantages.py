"""The two kinds of advantages, of steps and of trajectories, and what either means for a node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemo_ibtpo.tree.tree import FloatArray, Tree


@dataclass(frozen=True, slots=True)
class StepAdvantages:
    """One advantage a step, the same for all trajectories through it; [N] each, 0 at the root.

    Attributes:
        total: what the loss uses.
        global_part: what compares a step with the whole tree, before it is combined.
        local_part: what compares it with its parent.
    """

    total: FloatArray
    global_part: FloatArray
    local_part: FloatArray


@dataclass(frozen=True, slots=True)
class TrajectoryAdvantages:
    """One advantage a trajectory.

    Attributes:
        at_leaf: [N], the advantage of the trajectory that ends in the node; 0 where none does.
    """

    at_leaf: FloatArray


Advantages = StepAdvantages | TrajectoryAdvantages


def per_node(tree: Tree, advantages: Advantages | None) -> StepAdvantages:
    """What the nodes are credited with, nan where there is no such thing.

    The advantage of trajectories becomes, at each node, the mean over those through it; a tree that is left out has
    none at all.
    """
    if isinstance(advantages, StepAdvantages):
        return advantages
    nothing_N = np.full(len(tree.nodes), np.nan)
    if advantages is None:
        return StepAdvantages(nothing_N, nothing_N, nothing_N)
    return StepAdvantages(tree.sum_over_leaves(advantages.at_leaf) / tree.n_paths(), nothing_N, nothing_N)
