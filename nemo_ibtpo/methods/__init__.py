"""What is learned from trees: one file a method.

A method says which rewards are compared with which. Its class has its advantage, its term of the loss and what it
cannot be combined with; ``conf/method/<name>.yaml`` chooses its sampler, token weight and constants. ``method.class``
names the class by its import path, so that a method may live outside of this package (docs/methods.md).

Rewards are compared within one tree, the trajectories sampled for one prompt. A merged trajectory counts once per
draw everywhere (our choice).
"""

from nemo_ibtpo.methods.advantages import Advantages, StepAdvantages, TrajectoryAdvantages, per_node
from nemo_ibtpo.methods.base import Method
from nemo_ibtpo.methods.factory import make_method

__all__ = ["Advantages", "Method", "StepAdvantages", "TrajectoryAdvantages", "make_method", "per_node"]
