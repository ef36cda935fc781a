"""A source of weights that are all in this process, and the process group of a world of one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist


class Shard(NamedTuple):
    """A whole weight, or rows of one."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    tensor: torch.Tensor


class LocalWeights:
    """What a transport asks of an actor, of a model that one rank holds whole.

    Args:
        weights: full tensors by Hugging Face name, without a tied output layer.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights

    def weight_shards(self) -> list[Shard]:
        return [Shard(name, tuple(w.shape), w.stride(), 0, w.detach()) for name, w in self._weights.items()]

    def release_weights(self) -> None:
        """They stay where they are."""

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._weights.items()


@contextmanager
def one_rank() -> Iterator[None]:
    """Within the context this process is a world of one rank over gloo, as a run without torchrun is."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
