"""Process groups and the device: what has to stand before a model can be built."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.megatron.cpu import cuda_on_cpu


@dataclass(frozen=True)
class ParallelContext:
    """The device of this rank and the context in which Megatron code runs on it.

    Attributes:
        device: where parameters live.
        scope: wraps every call into Megatron; on a GPU it does nothing.
    """

    device: torch.device
    scope: Callable[[], AbstractContextManager[None]]


def resolve_device(name: str) -> torch.device:
    """``auto`` takes this rank's GPU where there is one.

    Raises:
        UserError: a GPU is asked for and there is none for this rank.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("actor.device=cuda, but torch finds no GPU; use actor.device=cpu or install a CUDA build")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank} has no GPU: this machine shows {torch.cuda.device_count()}; "
            "start at most one process a GPU"
        )
    return torch.device("cuda", local_rank)


def initialize(actor: ActorConfig, seed: int) -> ParallelContext:
    """Start torch.distributed and Megatron's process groups, and seed this rank.

    Outside torchrun it makes a world of one process.
    """
    device = resolve_device(actor.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=actor.collective_timeout_s)
    if not dist.is_initialized():
        if "RANK" in os.environ:
            dist.init_process_group(_backend(on_gpu), timeout=timeout)
        else:
            store = dist.TCPStore("localhost", 0, 1, is_master=True)
            dist.init_process_group(_backend(on_gpu), store=store, rank=0, world_size=1, timeout=timeout)
    context = ParallelContext(device, contextlib.nullcontext if on_gpu else cuda_on_cpu)
    with context.scope():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=actor.tensor_model_parallel_size,
            pipeline_model_parallel_size=actor.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=actor.virtual_pipeline_model_parallel_size,
            context_parallel_size=actor.context_parallel_size,
            expert_model_parallel_size=actor.expert_model_parallel_size,
            expert_tensor_parallel_size=1,
        )
        model_parallel_cuda_manual_seed(seed)
    return context


def _backend(on_gpu: bool) -> str:
    # gloo beside NCCL carries Python objects and CPU tensors.
    return "cpu:gloo,cuda:nccl" if on_gpu else "gloo"


def shutdown() -> None:
    """Take the process groups down again."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
