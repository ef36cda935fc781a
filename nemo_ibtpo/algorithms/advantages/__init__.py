"""What each step or trajectory of a tree is credited with: one small module per advantage, ``compute`` chooses one.

Rewards are compared within one tree, the trajectories sampled for one prompt; each module says which with which. A
merged trajectory counts once per draw everywhere (declared).
"""

from nemo_ibtpo.algorithms.advantages.compute import compute_advantages
from nemo_ibtpo.algorithms.advantages.kinds import Advantages, StepAdvantages, TrajectoryAdvantages, per_node

__all__ = ["Advantages", "StepAdvantages", "TrajectoryAdvantages", "compute_advantages", "per_node"]
