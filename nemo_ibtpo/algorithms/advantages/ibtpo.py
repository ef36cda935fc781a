"""``ibtpo``: how much better a step's trajectories end than the whole tree's, and what it tells over its parent.

IB-TPO (paper: arXiv 2605.28109) compares the value of every step with the root's (global) and with its parent's,
weighted by the confidence it was sampled with (local, the summand of the IB-Score)::

    A(s) = (p_hat(a*|s) - p_hat(a*|q)) / std(R)
           + lambda * (p_hat(a*|s) / p_hat(a*|parent(s)) - (1 + 1/beta)) * pi(s)

Declared: pi is the behaviour policy, the weights that sampled the tree; the standard deviation over the G
trajectories is unbiased (ddof = 1), so that on a tree without branches the global part is GRPO's advantage. A tree of
equal rewards has no local part either, which alone would push an all-right tree down.
"""

from __future__ import annotations

from nemo_ibtpo.algorithms.advantages.kinds import StepAdvantages
from nemo_ibtpo.config.schema import IBScoreConfig
from nemo_ibtpo.tree.ib_score import eta1, eta2
from nemo_ibtpo.tree.tree import ROOT, Tree


def ibtpo(tree: Tree, ib_coef: float, config: IBScoreConfig) -> StepAdvantages:
    """IB-TPO's step-level advantage; the rewards must differ."""
    values_N = tree.values(config.value_estimator)
    global_N = (values_N - values_N[ROOT]) / tree.rewards().std(ddof=1)
    local_N = eta1(tree, config) * eta2(tree, config)
    local_N[ROOT] = 0.0
    return StepAdvantages(global_N + ib_coef * local_N, global_N, local_N)
