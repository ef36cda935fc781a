"""Process groups for a worker that goes through many parallel layouts.

Megatron makes some forty groups for a layout, and every gloo group keeps threads of its own. They are made once per
layout, so go through cases in that order, and end with it.
"""

from __future__ import annotations

import gc

import torch.distributed as dist
from megatron.core import parallel_state
from torch.distributed import distributed_c10d

from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.megatron.parallel import ParallelContext, initialize

_entered: tuple[tuple[int, int, int | None, int, int], ParallelContext] | None = None


def enter(actor: ActorConfig) -> ParallelContext:
    """Process groups of this layout."""
    global _entered
    layout = (
        actor.tensor_model_parallel_size,
        actor.pipeline_model_parallel_size,
        actor.virtual_pipeline_model_parallel_size,
        actor.context_parallel_size,
        actor.expert_model_parallel_size,
    )
    if _entered is None or _entered[0] != layout:
        parallel_state.destroy_model_parallel()
        _end_threads()
        _entered = (layout, initialize(actor, seed=0))
    return _entered[1]


def _end_threads() -> None:
    """Destroy the groups of the last layout; Megatron only forgets them."""
    gc.collect()  # models and optimizers of the last layout hold groups
    if dist.is_initialized():
        dist.barrier()
        for group in list(distributed_c10d._world.pg_map):
            if group is not dist.group.WORLD:
                dist.destroy_process_group(group)
