"""``independent``: G trajectories from the prompt, as GRPO samples them (arXiv 2402.03300). Nothing is declared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemo_ibtpo.tree.branching.protocol import BranchPoint
from nemo_ibtpo.tree.tree import ROOT, Tree


@dataclass(frozen=True, slots=True)
class IndependentSampling:
    """All trajectories from the root, at once."""

    trajectories: int

    def next_round(self, tree: Tree, round: int, rng: np.random.Generator) -> list[BranchPoint]:
        """See :class:`~nemo_ibtpo.tree.branching.protocol.BranchingStrategy`."""
        return [BranchPoint(ROOT, self.trajectories)] if round == 0 else []
