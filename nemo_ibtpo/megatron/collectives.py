"""Collectives over all ranks that carry Python objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch.distributed as dist

Item = TypeVar("Item")


def gather_dealt(mine: Sequence[Item], total: int) -> list[Item]:
    """Undo dealing: with ``all_items[rank::world_size]`` on each rank, ``all_items`` on every rank.

    Args:
        mine: this rank's items.
        total: number of items over all ranks.
    """
    hands: list[Sequence[Item]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(hands, mine)
    return [hands[i % len(hands)][i // len(hands)] for i in range(total)]
