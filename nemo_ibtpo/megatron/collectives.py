"""Collectives over all ranks that carry Python objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

Item = TypeVar("Item")


@dataclass(frozen=True)
class Dealing:
    """Items that all ranks know, dealt one after the other to some of the ranks, like cards.

    Attributes:
        ranks: those that are dealt to, in order.
    """

    ranks: tuple[int, ...]

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's share; empty on a rank that is not dealt to."""
        rank = dist.get_rank()
        return items[self.ranks.index(rank) :: len(self.ranks)] if rank in self.ranks else items[:0]

    def gather(self, mine: Sequence[Item], total: int) -> list[Item]:
        """Undo dealing: what became of each item, in the order of the items, on every rank.

        A collective over all ranks.

        Args:
            mine: what became of this rank's share; empty on a rank that is not dealt to.
            total: number of items.
        """
        everyone: list[Sequence[Item]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, mine)
        hands = [everyone[rank] for rank in self.ranks]
        return [hands[i % len(hands)][i // len(hands)] for i in range(total)]


def gather_from_all(mine: Item) -> list[Item]:
    """What every rank brought, in the order of the ranks; a collective over all of them."""
    everyone: list[Item] = [mine] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
