"""``ib``: branch where the IB-Score is highest, the sampler of IB-TPO (paper: arXiv 2605.28109).

Declared: equal scores are taken oldest first. What else is declared stands in :mod:`nemo_ibtpo.tree.ib_score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemo_ibtpo.config.schema import IBScoreConfig
from nemo_ibtpo.tree.ib_score import ib_scores
from nemo_ibtpo.tree.tree import Tree


@dataclass(frozen=True, slots=True)
class IBRanking:
    """Highest IB-Score first, equal scores oldest first."""

    config: IBScoreConfig

    def rank(self, tree: Tree, candidates: Sequence[int], rng: np.random.Generator) -> list[int]:
        """See :class:`~nemo_ibtpo.tree.branching.ranked.Ranking`."""
        oldest_first = np.sort(candidates)
        scores = ib_scores(tree, self.config)[oldest_first]
        return [int(node) for node in oldest_first[np.argsort(-scores, kind="stable")]]
