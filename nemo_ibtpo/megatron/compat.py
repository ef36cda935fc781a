"""What differs between the versions of Megatron-Core that are supported, read off the code, not off a number."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
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


@torch.enable_grad()
def renew_gradient_hooks(chunk: DistributedDataParallel) -> None:
    """Add gradients to Megatron's buffers again after weights have been on another device.

    torch gives a tensor that has been there a new gradient accumulator. Megatron's hooks stay with the old one: from
    then on gradients would lie beside the buffers, which the optimizer reads, and these would stay zero.
    """
    hooked = [parameter for parameter in chunk.module.parameters() if parameter.requires_grad]
    for index, (parameter, old) in enumerate(zip(hooked, chunk.grad_accs, strict=True)):
        accumulator = parameter.expand_as(parameter).grad_fn.next_functions[0][0]
        if accumulator is not old:
            accumulator.register_hook(chunk._make_backward_post_hook(parameter))
            chunk.grad_accs[index] = accumulator
