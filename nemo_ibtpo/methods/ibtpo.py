"""IB-TPO: how much better a step's trajectories end than the whole tree's, and what it tells over its parent.

The value of every step is compared with the root's (global) and with its parent's, weighted by the confidence it was
sampled with (local, the summand of the IB-Score); paper: arXiv 2605.28109::

    A(s) = (p_hat(a*|s) - p_hat(a*|q)) / (std(R) + std_eps)
           + lambda * (p_hat(a*|s) / p_hat(a*|parent(s)) - (1 + 1/beta)) * pi(s)

Our choices: pi is the behaviour policy, the weights that sampled the tree; the standard deviation over the G
trajectories is unbiased (ddof = 1), so that on a tree without branches the global part is GRPO's advantage. A tree of
equal rewards has no local part either, which alone would push an all-right tree down.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nemo_ibtpo.config.schema import IBScoreConfig
from nemo_ibtpo.methods.advantages import StepAdvantages
from nemo_ibtpo.methods.base import Method
from nemo_ibtpo.tree.ib_score import eta1, eta2
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


class IBTPO(Method):
    """Each step against the whole tree and against its parent."""

    ib_coef: Annotated[float, Field(ge=0)]
    """Lambda, the weight of the comparison with the parent."""
    std_eps: Annotated[float, Field(ge=0)]
    """Added to the standard deviation of the rewards."""

    def advantages(self, tree: Tree, ib_score: IBScoreConfig) -> StepAdvantages:
        """See the module."""
        values_N = tree.values(ib_score.value_estimator)
        global_N = (values_N - values_N[ROOT]) / (tree.rewards().std(ddof=1) + self.std_eps)
        local_N = eta1(tree, ib_score) * eta2(tree, ib_score)
        local_N[ROOT] = 0.0
        return StepAdvantages(global_N + self.ib_coef * local_N, global_N, local_N)
