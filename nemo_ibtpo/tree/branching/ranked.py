"""Growth by a ranking of steps: the loop of IBTree (IB-TPO, arXiv 2605.28109), which the random tree shares.

``initial_rollouts`` trajectories (B0), then ``rounds - 1`` rounds (L - 1) that take the ``branch_points`` steps (K)
ranked first and sample ``rollouts_per_branch`` continuations from each (B): G = B0 + (L - 1) * K * B (paper). With a
window (``max_sequences_per_tree``, K = B = 1) the L - 1 branches follow one another without waiting for all that were
launched before.

Candidates (paper: nodes that are not leaves) are the root and every step that is not the last of its trajectory.
Declared: the room that a candidate needs, and that too few candidates share the round. With ``branch_root: false``,
an ablation, the root is continued only where there is nothing else to continue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nemo_ibtpo.config.schema import SamplerConfig
from nemo_ibtpo.tree.branching.protocol import NOTHING_IN_FLIGHT, BranchPoint, open_steps, share
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


class Ranking(Protocol):
    """Orders candidates."""

    def rank(
        self, tree: Tree, candidates: Sequence[int], rng: np.random.Generator, in_flight: Mapping[int, int]
    ) -> list[int]:
        """The candidates, the one to branch first at the front.

        Args:
            tree: at least one trajectory.
            candidates: nodes that may be branched.
            rng: the tree's generator.
            in_flight: sequences in flight by the node that they were branched at.
        """


@dataclass(frozen=True, slots=True)
class RankedBranching:
    """Trajectories from the root, then rounds that continue the candidates ranked first."""

    ranking: Ranking
    sampler: SamplerConfig
    max_new_tokens: int

    @property
    def window(self) -> int:
        """See :class:`~nemo_ibtpo.tree.branching.protocol.BranchingStrategy`."""
        return self.sampler.max_sequences_per_tree or 1

    def next_round(
        self,
        tree: Tree,
        round: int,
        rng: np.random.Generator,
        in_flight: Mapping[int, int] = NOTHING_IN_FLIGHT,
    ) -> list[BranchPoint]:
        """See :class:`~nemo_ibtpo.tree.branching.protocol.BranchingStrategy`."""
        sampler = self.sampler
        if round == 0:
            return [BranchPoint(ROOT, sampler.initial_rollouts)]
        if round >= sampler.rounds:
            return []
        candidates = open_steps(tree, self.max_new_tokens - sampler.min_new_tokens)
        if not sampler.branch_root:
            candidates = [node for node in candidates if node != ROOT] or [ROOT]
        chosen = self.ranking.rank(tree, candidates, rng, in_flight)[: sampler.branch_points]
        return share([BranchPoint(node, 0) for node in chosen], sampler.branch_points * sampler.rollouts_per_branch)
