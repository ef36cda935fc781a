"""``random``: branch at a random step, the RandomTree of IB-TPO's ablation (paper: arXiv 2605.28109).

Declared: every order of the candidates is equally likely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_ibtpo.tree.tree import Tree


@dataclass(frozen=True, slots=True)
class RandomRanking:
    """Every order is equally likely."""

    def rank(
        self, tree: Tree, candidates: Sequence[int], rng: np.random.Generator, in_flight: Mapping[int, int]
    ) -> list[int]:
        """See :class:`~nemo_ibtpo.tree.branching.ranked.Ranking`."""
        return [int(node) for node in rng.permutation(np.asarray(candidates))]
