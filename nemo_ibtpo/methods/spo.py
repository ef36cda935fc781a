"""SPO-tree: the value of a step against its parent's (arXiv 2505.23564).

    A(s) = V(s) - V(parent(s)),   V of a leaf its reward, V of any other node the mean over its children

SPO trains each edge of the tree once, which is ``loss.token_weight: unique``; a child counts once per draw.

Our choices: the variant that SPO calls "rloo" (the other one divides by the standard deviation among siblings); edges
of advantage 0, which SPO leaves out, stay, where they matter to the denominator and the KL term only.
"""

from __future__ import annotations

import numpy as np

from nemo_ibtpo.config.refusals import refuse_if
from nemo_ibtpo.config.schema import IBScoreConfig, LossConfig, SamplerConfig
from nemo_ibtpo.methods.advantages import StepAdvantages
from nemo_ibtpo.methods.base import Method
from nemo_ibtpo.methods.constraints import refuse_chains
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


class SPO(Method):
    """Each step against its parent, every edge of the tree once."""

    def advantages(self, tree: Tree, ib_score: IBScoreConfig) -> StepAdvantages:
        """See the module."""
        values_N = tree.values("children_mean")
        local_N = values_N - values_N[[max(node.parent, ROOT) for node in tree.nodes]]
        return StepAdvantages(local_N, np.zeros_like(local_N), local_N)

    def check(self, sampler: SamplerConfig, loss: LossConfig) -> None:
        """Trees need branches, and the loss has to train edges."""
        refuse_chains("SPO", "a step with its parent step, which is the same where nothing branches", sampler)
        refuse_if(
            loss.token_weight != "unique",
            f"loss.token_weight={loss.token_weight}: method SPO trains each edge of the tree once; set it to unique",
        )
