"""TreePO: the reward of a trajectory against the means of all subtrees it lies in (arXiv 2508.17445).

    A_i = mean over the nodes v on the path of i that hold several trajectories of (R_i - mean R below v)

and then whitened over the tokens of the optimizer step: minus their mean, divided by their unbiased standard
deviation, a trajectory counted once per token. The root always holds several.

Our choices: every node of a path is a subgroup, as every segment of TreePO's is, also where nothing branched there;
groups weigh the same, whatever their size; trees of equal rewards take no part in the whitening.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemo_ibtpo.config.schema import IBScoreConfig, LossConfig, SamplerConfig
from nemo_ibtpo.methods.advantages import Advantages, TrajectoryAdvantages
from nemo_ibtpo.methods.base import Method
from nemo_ibtpo.methods.constraints import refuse_chains
from nemo_ibtpo.tree.tree import Tree


class TreePO(Method):
    """Each trajectory against every subtree that it lies in, whitened over the update."""

    def advantages(self, tree: Tree, ib_score: IBScoreConfig) -> TrajectoryAdvantages:
        """The advantages before whitening."""
        values_N, shared_N = tree.values("leaf_mean"), tree.n_paths() > 1
        at_leaf_N = np.zeros(len(tree.nodes))
        for leaf in tree.leaves():
            groups = [node for node in tree.path(leaf.index) if shared_N[node]]
            at_leaf_N[leaf.index] = (values_N[leaf.index] - values_N[groups]).mean()
        return TrajectoryAdvantages(at_leaf_N)

    def over_update(self, trees: Sequence[Tree], advantages: Sequence[Advantages]) -> list[Advantages]:
        """Whiten over the tokens of the update."""
        raw = [own.at_leaf for own in advantages if isinstance(own, TrajectoryAdvantages)]
        ends = [(t, leaf) for t, tree in enumerate(trees) for leaf in tree.leaves()]
        raw_L = np.array([raw[t][leaf.index] for t, leaf in ends])
        tokens_L = np.array([leaf.draws * trees[t].depth_tokens(leaf.index) for t, leaf in ends])
        mean = np.average(raw_L, weights=tokens_L)
        std = np.sqrt((tokens_L * (raw_L - mean) ** 2).sum() / (tokens_L.sum() - 1))
        whitened = [np.zeros(len(tree.nodes)) for tree in trees]
        for (t, leaf), value in zip(ends, raw_L, strict=True):
            whitened[t][leaf.index] = (value - mean) / std
        return [TrajectoryAdvantages(at_leaf_N) for at_leaf_N in whitened]

    def check(self, sampler: SamplerConfig, loss: LossConfig) -> None:
        """Trees need branches."""
        refuse_chains("TreePO", "trajectories within each subtree, of which there is none", sampler)
