"""``fixed_width``: branch at the ends of fixed-width segments, the tree of TreePO (arXiv 2508.17445).

Steps are segments of ``segment_tokens`` tokens (TreePO: 512). TreePO decodes segment by segment, divides every
unfinished path in two after each until the tree is as wide as it may be, and goes back to random segments for the
paths that finished early. Here trajectories are sampled to their end and then branched, which draws the same trees:
round r continues segment ends at depth r, ``branch_points`` of them, with ``rollouts_per_branch`` rollouts each
(TreePO's division by two is 1); where that depth has fewer, random segment ends of the whole tree take their places.

Declared: which of too many segment ends of a depth are continued is random; a segment end drawn several times counts
once; ``initial_rollouts`` paths leave the prompt (TreePO draws 2 to 8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nemo_ibtpo.config.schema import SamplerConfig
from nemo_ibtpo.tree.branching.protocol import NOTHING_IN_FLIGHT, BranchPoint, open_steps, share
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


@dataclass(frozen=True, slots=True)
class FixedWidthBranching:
    """Trajectories from the root, then one depth of segments a round, random segments for what is missing."""

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
        candidates = open_steps(tree, self.max_new_tokens - sampler.min_new_tokens)
        shuffled = [int(node) for node in rng.permutation(np.asarray(candidates))]
        at_depth = [node for node in shuffled if len(tree.path(node)) - 1 == round]
        fallback = [node for node in shuffled if len(tree.path(node)) - 1 != round]
        chosen = [*at_depth, *fallback][: sampler.branch_points]
        return share([BranchPoint(node, 0) for node in chosen], sampler.branch_points * sampler.rollouts_per_branch)
