"""``full``: a full tree of fixed-width segments, SPO-tree (arXiv 2505.23564).

``initial_rollouts`` children of the prompt and ``1 + rollouts_per_branch`` children of every segment on the
``rounds - 1`` levels below it: G = initial_rollouts * (1 + rollouts_per_branch) ** (rounds - 1) trajectories. SPO
publishes 6 x 6 x 6 segments of 600 tokens: (6, 3 rounds, 5), 216 trajectories.

Trajectories are sampled to their end and then branched, level by level, which draws the same trees as decoding
segment by segment. Declared: a segment drawn twice has twice the children; a trajectory that ends before a level
leaves its rollouts to the others of that level, and a level without any to the one above, so that every tree reaches
G where SPO's stay smaller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nemo_ibtpo.config.schema import SamplerConfig
from nemo_ibtpo.tree.branching.protocol import NOTHING_IN_FLIGHT, BranchPoint, open_steps
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


@dataclass(frozen=True, slots=True)
class FullTreeBranching:
    """Trajectories from the root, then every segment of one level a round."""

    sampler: SamplerConfig
    max_new_tokens: int
    window: int = 1

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
        level = self._level(tree, round)
        per_segment = sampler.rollouts_per_branch
        rollouts = sampler.initial_rollouts * (1 + per_segment) ** (round - 1) * per_segment
        turns = (level[turn % len(level)] for turn in range(rollouts))
        return [BranchPoint(node, count) for node, count in Counter(turns).items()]

    def _level(self, tree: Tree, level: int) -> list[int]:
        """The segments to continue, oldest first, each as often as it was drawn; the root alone once."""
        deepest = self.max_new_tokens - self.sampler.min_new_tokens
        by_level: dict[int, list[int]] = {}
        for node in open_steps(tree, deepest):
            by_level.setdefault(len(tree.path(node)) - 1, []).extend([node] * max(1, tree.nodes[node].draws))
        return by_level[max(depth for depth in by_level if depth <= level)]
