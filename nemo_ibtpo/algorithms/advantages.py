"""What each step or trajectory of a tree is credited with.

Rewards are compared within one tree, the trajectories sampled for one prompt, and nowhere else:

- ``ibtpo`` (paper) gives every step its own advantage: how much better its trajectories end than those of
  the whole tree (global), plus lambda times what it tells over its parent, weighted by the confidence it was
  sampled with (local, the summand of the IB-Score)::

      A(s) = (p_hat(a*|s) - p_hat(a*|q)) / std(R)
             + lambda * (p_hat(a*|s) / p_hat(a*|parent(s)) - (1 + 1/beta)) * pi(s)

  pi is the behaviour policy, the weights that sampled the tree (declared).
- ``grpo`` gives every trajectory one advantage, ``A_i = (R_i - mean(R)) / std(R)``.

Both take the unbiased standard deviation (ddof = 1) over the G trajectories, a merged trajectory counted once
per draw (declared), so that on a tree without branches the global part is GRPO's advantage. Where all rewards
are equal there is nothing to compare (declared): ``zero_variance: drop`` leaves the tree out of training,
``keep`` gives it advantage 0 everywhere, and no local part, which alone would push an all-right tree down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemo_ibtpo.config.schema import AdvantageConfig, IBScoreConfig
from nemo_ibtpo.tree.ib_score import eta1, eta2
from nemo_ibtpo.tree.tree import ROOT, FloatArray, Tree


@dataclass(frozen=True, slots=True)
class StepAdvantages:
    """One advantage a step, the same for all trajectories through it; [N] each, 0 at the root.

    Attributes:
        total: what the loss uses, ``global_part + ib_coef * local_part``.
        global_part: A_GL.
        local_part: A_IB, without its coefficient.
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


def compute_advantages(tree: Tree, config: AdvantageConfig, ib_config: IBScoreConfig) -> Advantages | None:
    """Advantages of a tree whose rewards are known; None if the tree is left out of training.

    Args:
        tree: the trajectories of one prompt.
        config: which advantage, and what becomes of a tree whose rewards are all equal.
        ib_config: the value estimator and the constants of the local part; ``ibtpo`` only.
    """
    rewards_G = tree.rewards()
    if rewards_G.min() == rewards_G.max():
        zeros_N = np.zeros(len(tree.nodes))
        if config.zero_variance == "drop":
            return None
        return StepAdvantages(zeros_N, zeros_N, zeros_N)
    if config.name == "grpo":
        return grpo(tree)
    return ibtpo(tree, config.ib_coef, ib_config)


def ibtpo(tree: Tree, ib_coef: float, config: IBScoreConfig) -> StepAdvantages:
    """IB-TPO's step-level advantage (paper); the rewards must differ."""
    values_N = tree.values(config.value_estimator)
    global_N = (values_N - values_N[ROOT]) / tree.rewards().std(ddof=1)
    local_N = eta1(tree, config) * eta2(tree, config)
    local_N[ROOT] = 0.0
    return StepAdvantages(global_N + ib_coef * local_N, global_N, local_N)


def grpo(tree: Tree) -> TrajectoryAdvantages:
    """GRPO's group-relative advantage; the rewards must differ."""
    rewards_G = tree.rewards()
    mean, std = rewards_G.mean(), rewards_G.std(ddof=1)
    at_leaf_N = np.zeros(len(tree.nodes))
    for leaf in tree.leaves():
        at_leaf_N[leaf.index] = (leaf.reward - mean) / std
    return TrajectoryAdvantages(at_leaf_N)
