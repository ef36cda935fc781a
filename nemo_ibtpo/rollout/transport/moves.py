"""Who brings which part of the weights to which host, in which buckets. No torch: the planner counts with it too.

Each host with an engine gets every part once, written by one of its ranks. A part that a rank of the host holds is
copied by that rank; ranks that hold the same part take turns. Any other part goes over the network once for the host.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Part(NamedTuple):
    """A part of a weight: its Hugging Face name and its first element."""

    name: str
    offset: int


@dataclass(frozen=True, slots=True)
class Move:
    """A part on its way to the memory of one host.

    Attributes:
        size: bytes.
        source: rank that holds the part.
        writer: rank of the host; the same as ``source`` where the host holds the part.
    """

    part: Part
    size: int
    source: int
    writer: int


def plan_moves(
    sizes: Mapping[Part, int],
    holders: Sequence[Collection[Part]],
    hosts: Sequence[Hashable],
    targets: Sequence[Hashable],
) -> list[Move]:
    """Who brings which part to which host.

    Args:
        sizes: bytes of all parts, in the order in which they are to be moved.
        holders: the parts of each rank.
        hosts: of each rank.
        targets: the hosts that need the weights.
    """
    holding: dict[Part, list[int]] = defaultdict(list)
    for rank, held in enumerate(holders):
        for part in held:
            holding[part].append(rank)
    ranks_of = {target: [rank for rank, host in enumerate(hosts) if host == target] for target in targets}
    written, sent = Counter[int](), Counter[int]()
    moves = []
    for part, size in sizes.items():
        for target in targets:
            local = [rank for rank in holding[part] if hosts[rank] == target]
            writer = min(local or ranks_of[target], key=lambda rank: (written[rank], rank))
            source = writer if local else min(holding[part], key=lambda rank: (sent[rank], rank))
            if not local:
                sent[source] += size
            written[writer] += size
            moves.append(Move(part, size, source, writer))
    return moves


def cut_into_buckets(moves: Iterable[Move], limit: int) -> Iterator[list[Move]]:
    """Moves that are made together, in order: no rank copies, sends and receives more than ``limit`` bytes in one.

    A part that is larger is a bucket of its own.
    """
    bucket: list[Move] = []
    load = Counter[int]()
    for move in moves:
        ranks = {move.source, move.writer}
        if bucket and any(load[rank] + move.size > limit for rank in ranks):
            yield bucket
            bucket, load = [], Counter[int]()
        bucket.append(move)
        for rank in ranks:
            load[rank] += move.size
    if bucket:
        yield bucket


@dataclass(frozen=True)
class Traffic:
    """Bytes of an update.

    Attributes:
        sent, received: over the network, by rank.
        written: into the memory of hosts, by rank.
    """

    sent: Mapping[int, int]
    received: Mapping[int, int]
    written: Mapping[int, int]

    @property
    def network(self) -> int:
        """Bytes over the network, of all ranks."""
        return sum(self.sent.values())


def traffic(moves: Iterable[Move]) -> Traffic:
    """What a plan costs."""
    sent, received, written = Counter[int](), Counter[int](), Counter[int]()
    for move in moves:
        written[move.writer] += move.size
        if move.source != move.writer:
            sent[move.source] += move.size
            received[move.writer] += move.size
    return Traffic(sent, received, written)
