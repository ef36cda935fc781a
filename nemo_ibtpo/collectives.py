"""What one rank tells all others: the only home of collectives that carry Python objects over all ranks.

Every function here is a collective over all ranks: all of them call it, in the same order. A thread beside the main
one names a group of all ranks that is its own; elsewhere the group is left out.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from nemo_ibtpo.config.errors import UserError

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Dealing:
    """Items that all ranks know, dealt one after the other to some of the ranks, like cards.

    Attributes:
        ranks: those that are dealt to, in order.
    """

    ranks: tuple[int, ...]

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's share; empty on a rank that is not dealt to. No collective."""
        rank = dist.get_rank()
        return items[self.ranks.index(rank) :: len(self.ranks)] if rank in self.ranks else items[:0]

    def gather(self, mine: Sequence[Item], total: int) -> list[Item]:
        """Undo dealing: what became of each item, in the order of the items, on every rank.

        Args:
            mine: what became of this rank's share; empty on a rank that is not dealt to.
            total: number of items.
        """
        everyone = gather_from_all(mine)
        hands = [everyone[rank] for rank in self.ranks]
        return [hands[i % len(hands)][i // len(hands)] for i in range(total)]


def all_ranks() -> Dealing:
    """Deals to every rank. No collective."""
    return Dealing(tuple(range(dist.get_world_size())))


def gather_from_all(mine: Item, group: dist.ProcessGroup | None = None) -> list[Item]:
    """What every rank brought, in the order of the ranks."""
    everyone: list[Item] = [mine] * dist.get_world_size()
    with collector_paused():
        dist.all_gather_object(everyone, mine, group=group)
    return everyone


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's collector of cycles while objects are read.

    Reading trees makes millions of objects and no garbage. The collector would go through all of them again and
    again, which takes several times as long as reading them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def from_all(function: Callable[[], Value], group: dist.ProcessGroup | None = None) -> list[Value]:
    """What the function returns on each rank, all of which call it, in the order of the ranks.

    Raises:
        UserError: the function raised one on some rank; on every rank.
        RuntimeError: the function raised something else on some rank; on every rank, with its own as the cause.
    """
    value: Value | None = None
    failure: Exception | None = None
    try:
        value = function()
    except Exception as error:
        failure = error
    mine = None if failure is None else (isinstance(failure, UserError), str(failure))
    everyone = gather_from_all((value, mine), group)
    for rank, (_, failed) in enumerate(everyone):
        if failed is not None:
            is_users, message = failed
            raise (UserError(message) if is_users else RuntimeError(f"rank {rank} failed: {message}")) from failure
    return [value for value, _ in everyone]  # type: ignore[misc]  # no function has failed


def from_rank_0(function: Callable[[], Value], group: dist.ProcessGroup | None = None) -> Value:
    """What the function returns on rank 0, the only rank that calls it, on every rank.

    Raises:
        UserError: the function raised one; on every rank.
        RuntimeError: the function raised something else; on every rank but rank 0, which raises that itself.
    """
    answer: list[Any] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            answer = [function(), None]
        except Exception as error:
            failure = error
            answer = [None, (isinstance(error, UserError), str(error))]
    dist.broadcast_object_list(answer, src=0, group=group)
    value, failed = answer
    if failure is not None:
        raise failure
    if failed is not None:
        is_users, message = failed
        raise UserError(message) if is_users else RuntimeError(f"rank 0 failed: {message}")
    result: Value = value
    return result


def largest(mine: int) -> int:
    """The largest of the numbers that the ranks brought."""
    number = torch.tensor(mine)
    dist.all_reduce(number, op=dist.ReduceOp.MAX)
    return int(number)
