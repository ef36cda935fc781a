"""``independent``: G trajectories from the prompt, as GRPO samples them (arXiv 2402.03300). Nothing is declared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nemo_ibtpo.tree.branching.protocol import NOTHING_IN_FLIGHT, BranchPoint
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


@dataclass(frozen=True, slots=True)
class IndependentSampling:
    """All trajectories from the root, at once."""

    trajectories: int
    window: int = 1

    def next_round(
        self,
        tree: Tree,
        round: int,
        rng: np.random.Generator,
        in_flight: Mapping[int, int] = NOTHING_IN_FLIGHT,
    ) -> list[BranchPoint]:
        """See :class:`~nemo_ibtpo.tree.branching.protocol.BranchingStrategy`."""
        return [BranchPoint(ROOT, self.trajectories)] if round == 0 else []
