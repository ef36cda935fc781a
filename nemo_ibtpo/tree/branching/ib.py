"""``ib``: branch where another rollout is worth most, the sampler of IB-TPO (paper: arXiv 2605.28109).

``ib_score.selection: paper`` takes the highest IB-Score, ``per_draw`` the highest J u / B;
:mod:`nemo_ibtpo.tree.ib_score` has both. Declared: equal scores are taken oldest first; with ``per_draw``, candidates
of score 0 (another draw there would teach nothing, or repeat what is known) come last, those drawn fewest times
first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_ibtpo.config.schema import IBScoreConfig
from nemo_ibtpo.tree.ib_score import draws_at, ib_scores_in_flight, values_per_draw
from nemo_ibtpo.tree.tree import Tree


@dataclass(frozen=True, slots=True)
class IBRanking:
    """Highest score first, equal scores oldest first."""

    config: IBScoreConfig

    def rank(
        self, tree: Tree, candidates: Sequence[int], rng: np.random.Generator, in_flight: Mapping[int, int]
    ) -> list[int]:
        """See :class:`~nemo_ibtpo.tree.branching.ranked.Ranking`."""
        oldest_first = np.sort(candidates)
        in_flight_N = np.zeros(len(tree.nodes), dtype=np.int64)
        for node, sequences in in_flight.items():
            in_flight_N[node] = sequences
        if self.config.selection == "paper":
            scores = ib_scores_in_flight(tree, self.config, in_flight_N)[oldest_first]
            order = np.argsort(-scores, kind="stable")
        else:
            scores = values_per_draw(tree, self.config, in_flight_N)[oldest_first]
            drawn = (draws_at(tree) + in_flight_N)[oldest_first]
            order = np.lexsort((np.where(scores > 0, 0, drawn), -scores))
        return [int(node) for node in oldest_first[order]]
