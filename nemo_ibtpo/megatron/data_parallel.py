"""Megatron's data-parallel wrapper of a rank's model chunks: gradients are summed and weights gathered over ranks.

Both may go on beside computation: gradients are reduced in the backward pass of the last micro-batch, bucket by
bucket, and in the same buckets the distributed optimizer's weights are gathered in the forward pass of the next
update, by Megatron's hooks before each module. In between a rank has the new values of its own shard alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_ibtpo.config.schema import ActorConfig


def data_parallel(
    chunks: Sequence[torch.nn.Module], config: TransformerConfig, actor: ActorConfig, device: torch.device
) -> list[DistributedDataParallel]:
    """Wrap the chunks, and tell the schedule in ``config`` when gradients are not to be reduced."""
    reduces, gathers = overlaps(actor, device)
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=actor.use_distributed_optimizer,
        overlap_grad_reduce=reduces,
        overlap_param_gather=gathers,
        bucket_size=actor.grad_bucket_size,
    )
    wrapped = [DistributedDataParallel(config, ddp_config, chunk) for chunk in chunks]
    if reduces:
        # Gradients are reduced in the backward pass of a chunk's last micro-batch, not in those before it.
        no_sync = [chunk.no_sync for chunk in wrapped]
        config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    return wrapped


def overlaps(actor: ActorConfig, device: torch.device) -> tuple[bool, bool]:
    """Whether gradients are reduced, and whether weights are gathered, while the model computes."""
    on_gpu = device.type == "cuda"
    reduces = on_gpu if actor.overlap_grad_reduce is None else actor.overlap_grad_reduce
    gathers = actor.overlap_param_gather
    if gathers is None:
        gathers = on_gpu and reduces and actor.use_distributed_optimizer
    return reduces, gathers


class WeightGather:
    """Completes the weights that the last optimizer step has left to the next update's forward pass.

    Args:
        chunks: this rank's model chunks.
    """

    def __init__(self, chunks: Sequence[DistributedDataParallel]) -> None:
        self._chunks = chunks
        self._left_over = False

    def after_step(self) -> None:
        """The optimizer has changed the weights."""
        self._left_over = self._chunks[0].ddp_config.overlap_param_gather

    @torch.no_grad()
    def finish(self) -> None:
        """Every rank has all of its weights when this returns; a collective, if the last optimizer step left it."""
        if self._left_over:
            for chunk in self._chunks:
                chunk.start_param_sync(force_sync=True)
            self._left_over = False
