"""Where a tree grows next: one small module per sampler, and ``factory`` that chooses one.

A strategy is asked round after round, or, with a window, whenever one of the tree's sequences has ended. It answers
with the places to continue and how many rollouts each gets; an empty answer means that nothing more is launched.
Every strategy reaches ``SamplerConfig.trajectories_per_prompt`` trajectories, whatever the tree looks like: where it
has fewer places than a round asks for, those it has share the round's rollouts (declared).

No place is continued with fewer than ``min_new_tokens`` left below it under the length limit (declared). Random
choices come from the generator that is passed in, one per tree, so that a tree does not depend on its neighbours.
"""

from nemo_ibtpo.tree.branching.factory import make_strategy
from nemo_ibtpo.tree.branching.independent import IndependentSampling
from nemo_ibtpo.tree.branching.protocol import BranchingStrategy, BranchPoint

__all__ = ["BranchPoint", "BranchingStrategy", "IndependentSampling", "make_strategy"]
