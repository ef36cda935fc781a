"""IB-TPO: Information Bottleneck driven Tree-based Policy Optimization with a Megatron-Core actor.

The names below are for users' own code. They are imported when they are first used, none of them with torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_ibtpo.config.errors import UserError
    from nemo_ibtpo.methods import Method, StepAdvantages, TrajectoryAdvantages
    from nemo_ibtpo.tree.ib_score import ib_scores
    from nemo_ibtpo.tree.tree import Tree

__version__ = "0.1.0"
__all__ = ["Method", "StepAdvantages", "TrajectoryAdvantages", "Tree", "UserError", "ib_scores"]

_HOMES = {
    "Method": "nemo_ibtpo.methods",
    "StepAdvantages": "nemo_ibtpo.methods",
    "TrajectoryAdvantages": "nemo_ibtpo.methods",
    "Tree": "nemo_ibtpo.tree.tree",
    "UserError": "nemo_ibtpo.config.errors",
    "ib_scores": "nemo_ibtpo.tree.ib_score",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
