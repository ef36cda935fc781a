"""Megatron-Core's optimizer and learning-rate schedule from our settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from nemo_ibtpo.config.schema import ActorConfig, OptimizerConfig


def build_optimizer(
    chunks: Sequence[DistributedDataParallel],
    settings: OptimizerConfig,
    actor: ActorConfig,
    dtype: torch.dtype,
    total_updates: int,
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """Adam over this rank's model chunks (Megatron's DDP modules), and its learning rate.

    Args:
        total_updates: optimizer steps of the whole run, over which the rate decays unless settings say otherwise.
    """
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            min_lr=settings.min_lr,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.adam_beta1,
            adam_beta2=settings.adam_beta2,
            adam_eps=settings.adam_eps,
            clip_grad=settings.clip_grad,
            bf16=dtype is torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=actor.use_distributed_optimizer,
            overlap_param_gather=chunks[0].ddp_config.overlap_param_gather,
        ),
        list(chunks),
    )
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=settings.warmup_steps,
        lr_decay_steps=max(settings.decay_steps or total_updates, settings.warmup_steps + 1),
        lr_decay_style=settings.decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=total_updates,
        wd_incr_style="constant",
    )
    # Megatron's scheduler starts at step 0, where warm-up gives a rate of 0: the first update would do nothing.
    if settings.warmup_steps:
        scheduler.step(increment=1)
    return optimizer, scheduler
