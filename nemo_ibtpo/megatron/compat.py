"""What differs between the versions of Megatron-Core that are supported, read off the code, not off a number."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from megatron.core.transformer.moe.router import TopKRouter

AUX_LOSS_COUNTS_TENSOR_PARALLEL_GROUP = (
    "tp_cp_group" in TopKRouter.attach_and_log_load_balancing_loss.__code__.co_names
)
"""Whether the load-balancing loss is multiplied by the tokens that a tensor-parallel group routes (0.19), or by
those of a rank alone (0.16)."""


def with_router(mlp: Any, router: type) -> Any:
    """A specification of a mixture of experts, as Megatron makes it, with this router.

    It is a ModuleSpec in 0.16 and a partial in 0.19.
    """
    if isinstance(mlp, partial):
        return partial(mlp, submodules=replace(mlp.keywords["submodules"], router=router))
    return replace(mlp, submodules=replace(mlp.submodules, router=router))
