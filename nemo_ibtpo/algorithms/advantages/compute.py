"""From ``advantage.name`` to the advantages of an optimizer step's trees.

Where all rewards of a tree are equal there is nothing to compare (declared): ``zero_variance: drop`` leaves the tree
out of training, ``keep`` gives it advantage 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemo_ibtpo.algorithms.advantages.grpo import grpo
from nemo_ibtpo.algorithms.advantages.ibtpo import ibtpo
from nemo_ibtpo.algorithms.advantages.kinds import Advantages, StepAdvantages
from nemo_ibtpo.algorithms.advantages.spo import spo
from nemo_ibtpo.algorithms.advantages.treepo import treepo
from nemo_ibtpo.algorithms.advantages.treerl import treerl
from nemo_ibtpo.config.schema import AdvantageConfig, IBScoreConfig
from nemo_ibtpo.tree.tree import Tree


def compute_advantages(
    trees: Sequence[Tree], config: AdvantageConfig, ib_config: IBScoreConfig
) -> list[Advantages | None]:
    """Advantages of trees whose rewards are known, in their order; None for a tree that is left out of training.

    Args:
        trees: all trees of an optimizer step, because ``treepo`` whitens over them.
        config: which advantage, and what becomes of a tree whose rewards are all equal.
        ib_config: the value estimator and the constants of the local part; ``ibtpo`` only.
    """
    mixed = [tree for tree in trees if _rewards_differ(tree)]
    advantages = iter(_of_mixed(mixed, config, ib_config))
    return [next(advantages) if _rewards_differ(tree) else _of_equal(tree, config) for tree in trees]


def _of_mixed(trees: Sequence[Tree], config: AdvantageConfig, ib_config: IBScoreConfig) -> Sequence[Advantages]:
    match config.name:
        case "ibtpo":
            return [ibtpo(tree, config.ib_coef, ib_config) for tree in trees]
        case "grpo" | "ibro":  # what IBRO adds is a term of the loss
            return [grpo(tree) for tree in trees]
        case "treerl":
            return [treerl(tree) for tree in trees]
        case "treepo":
            return treepo(trees)
        case "spo":
            return [spo(tree) for tree in trees]


def _of_equal(tree: Tree, config: AdvantageConfig) -> StepAdvantages | None:
    zeros_N = np.zeros(len(tree.nodes))
    return None if config.zero_variance == "drop" else StepAdvantages(zeros_N, zeros_N, zeros_N)


def _rewards_differ(tree: Tree) -> bool:
    rewards_G = tree.rewards()
    return bool(rewards_G.min() < rewards_G.max())
