"""The ranks of an evaluation: this process alone, or those that torchrun has started, over gloo."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from nemo_ibtpo.collectives import Dealing
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import RolloutConfig

_TIMEOUT = timedelta(days=1)  # ranks wait for a conversion, and for the longest share of the samples


@contextmanager
def joined_ranks() -> Iterator[int]:
    """Ranks that can speak to each other within the block; this one's number."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo", timeout=_TIMEOUT)
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def device_of_rank(asked: str) -> torch.device:
    """The device that an engine of this rank runs on; of several GPUs of a node the rank's own."""
    on_gpu = asked == "cuda" or (asked == "auto" and torch.cuda.is_available())
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")


def engines_of(rollout: RolloutConfig) -> Dealing:
    """Who owns an engine; problems are dealt to them. A single process owns one, over as many GPUs as it spreads.

    Raises:
        UserError: the ranks do not divide into replicas.
    """
    world_size, tensor = dist.get_world_size(), rollout.tensor_parallel_size
    if world_size == 1:
        return Dealing((0,))
    replicas = world_size // tensor if rollout.num_replicas is None else rollout.num_replicas
    if world_size % tensor or replicas * tensor > world_size or not replicas:
        raise UserError(
            f"{world_size} ranks do not make {rollout.num_replicas or 'any number of'} replicas of "
            f"rollout.tensor_parallel_size={tensor}: start a multiple of it, with rollout.num_replicas=null"
        )
    return Dealing(tuple(range(0, replicas * tensor, tensor)))
