"""The two kinds of advantages: of steps and of trajectories."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_ibtpo.tree.tree import FloatArray


@dataclass(frozen=True, slots=True)
class StepAdvantages:
    """One advantage a step, the same for all trajectories through it; [N] each, 0 at the root.

    Attributes:
        total: what the loss uses.
        global_part: what compares a step with the whole tree, before it is combined.
        local_part: what compares it with its parent.
    """

    total: FloatArray
    global_part: FloatArray
    local_part: FloatArray


@dataclass(frozen=True, slots=True)
class TrajectoryAdvantages:
    """One advantage a trajectory.

    Attributes:
        at_leaf: [N], the advantage of the trajectory that ends in the node; 0 where none does.
    """

    at_leaf: FloatArray


Advantages = StepAdvantages | TrajectoryAdvantages
