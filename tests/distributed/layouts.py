"""Process groups for a worker that goes through many parallel layouts.

Megatron makes some forty groups for a layout, and every gloo group keeps threads of its own. A worker that made new
ones for each case would soon have thousands, so they are made once per layout: go through cases in that order.
"""

from __future__ import annotations

from megatron.core import parallel_state

from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.megatron.parallel import ParallelContext, initialize

_entered: tuple[tuple[int, int, int | None, int], ParallelContext] | None = None


def enter(actor: ActorConfig) -> ParallelContext:
    """Process groups of this layout."""
    global _entered
    layout = (
        actor.tensor_model_parallel_size,
        actor.pipeline_model_parallel_size,
        actor.virtual_pipeline_model_parallel_size,
        actor.expert_model_parallel_size,
    )
    if _entered is None or _entered[0] != layout:
        parallel_state.destroy_model_parallel()
        _entered = (layout, initialize(actor, seed=0))
    return _entered[1]
