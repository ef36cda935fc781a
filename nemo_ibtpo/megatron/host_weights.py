"""The model's weights into memory that the ranks of a host share, each rank copying its own shards.

Nothing is gathered: a shard is copied once, from where it is trained to where an engine reads it. What is held here:

- Each host with such memory gets every weight, each shard of it written by one of its ranks; ranks that hold the same
  shard take turns, so that all of them have about as much to copy.
- A shard that no rank of a host holds (pipeline stages of other hosts) goes over the network once for that host.
- Who copies, sends and receives what is worked out once, and so are the views that are copied.
- Every rank goes through its part in one order, which cannot deadlock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_ibtpo.collectives import gather_from_all
from nemo_ibtpo.megatron.architecture import Architecture
from nemo_ibtpo.megatron.weights import Rule, global_parameters, rules

_BUCKET_BYTES = 32 * 2**20  # an engine loads one bucket while the next one is written


class Shard(NamedTuple):
    """A tensor-parallel part of a parameter; 0 where it is not cut."""

    name: str
    part: int


@dataclass(frozen=True, slots=True)
class Move:
    """A shard on its way to the memory of one host.

    Attributes:
        source: rank that holds the shard.
        writer: rank of the host; the same as ``source`` where the host holds the shard.
    """

    shard: Shard
    source: int
    writer: int


def plan_moves(
    sizes: Mapping[Shard, int], holders: Sequence[set[Shard]], hosts: Sequence[Hashable], targets: Sequence[Hashable]
) -> list[Move]:
    """Who brings which shard to which host.

    Args:
        sizes: bytes of all shards, in the order in which they are to be moved.
        holders: the shards of each rank.
        hosts: of each rank.
        targets: the hosts that need the weights.
    """
    ranks_of: dict[Shard, list[int]] = defaultdict(list)
    for rank, held in enumerate(holders):
        for shard in held:
            ranks_of[shard].append(rank)
    written, sent = Counter[int](), Counter[int]()
    moves = []
    for shard, size in sizes.items():
        for target in targets:
            holding = [rank for rank in ranks_of[shard] if hosts[rank] == target]
            if holding:
                source = writer = min(holding, key=lambda rank: (written[rank], rank))
            else:
                source = min(ranks_of[shard], key=lambda rank: (sent[rank], rank))
                here = [rank for rank, host in enumerate(hosts) if host == target]
                writer = min(here, key=lambda rank: (written[rank], rank))
                sent[source] += size
            written[writer] += size
            moves.append(Move(shard, source, writer))
    return moves


@dataclass
class _Bucket:
    """Weights that are told to the engine together.

    Attributes:
        names: their Hugging Face names.
        tasks: what this rank does to bring them about.
    """

    names: list[str] = field(default_factory=list)
    tasks: list[Callable[[], None]] = field(default_factory=list)


class HostWeightWriter:
    """This rank's part; making one is a collective over all ranks.

    Args:
        chunks: this rank's part of the model.
        target: full tensors by Hugging Face name, in memory that the ranks of this host share; None on a host that
            needs no weights.
        host: what tells the hosts apart.
    """

    def __init__(
        self, chunks: Sequence[GPTModel], arch: Architecture, target: Mapping[str, Tensor] | None, host: Hashable
    ) -> None:
        self._target = target
        self._tp_size = parallel_state.get_tensor_model_parallel_world_size()
        table = rules(arch)
        local = global_parameters(chunks, arch)
        held = {self._shard(name, table[name]): parameter for name, parameter in local.items()}
        everyone = gather_from_all((host, target is not None, set(held)))
        hosts = [one for one, _, _ in everyone]
        targets = list(dict.fromkeys(one for one, needs, _ in everyone if needs))
        self._group: dist.ProcessGroup | None = None
        for one in targets:
            group = dist.new_group([rank for rank, other in enumerate(hosts) if other == one], backend="gloo")
            if one == host:
                self._group = group
        self._dtype = next(iter(local.values())).dtype
        sizes = {
            Shard(name, part): torch.Size(rule.shard_shape(self._parallel(rule))).numel() * self._dtype.itemsize
            for name, rule in table.items()
            for part in range(rule.shards(self._parallel(rule)))
        }
        self._buckets = [_Bucket()]
        filled, last = 0, ""
        for move in plan_moves(sizes, [shards for _, _, shards in everyone], hosts, targets):
            name = move.shard.name
            if name != last:
                if filled >= _BUCKET_BYTES:
                    self._buckets.append(_Bucket())
                    filled = 0
                self._buckets[-1].names += table[name].shapes
                last = name
            filled += sizes[move.shard]
            if task := self._task(move, table[name], held.get(move.shard)):
                self._buckets[-1].tasks.append(task)

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Write the weights; yields (Hugging Face name, full tensor in the shared memory) once it is complete.

        A collective over all ranks, which must consume it to the end; there is nothing to consume on a host that
        needs no weights. No engine of this host may read the memory when the first rank calls it.
        """
        for bucket in self._buckets:
            for task in bucket.tasks:
                task()
            if self._target is not None:
                dist.barrier(group=self._group)
                for name in bucket.names:
                    yield name, self._target[name]

    def _parallel(self, rule: Rule) -> int:
        return 1 if rule.expert is not None else self._tp_size

    def _shard(self, name: str, rule: Rule) -> Shard:
        cut = rule.shards(self._parallel(rule)) > 1
        return Shard(name, parallel_state.get_tensor_model_parallel_rank() if cut else 0)

    def _task(self, move: Move, rule: Rule, parameter: torch.nn.Parameter | None) -> Callable[[], None] | None:
        """What this rank does for a move; None if it has no part in it."""
        me, part, size = dist.get_rank(), move.shard.part, self._parallel(rule)
        if me not in (move.source, move.writer):
            return None
        if me != move.writer:
            assert parameter is not None
            return lambda: dist.send(parameter.detach().cpu().contiguous(), dst=move.writer)
        assert self._target is not None
        full = [self._target[name] for name in rule.shapes]
        if me == move.source:
            assert parameter is not None
            pieces = rule.pieces(parameter.detach(), full, part, size)
            return lambda: _copy(pieces)

        def receive() -> None:
            shard = torch.empty(rule.shard_shape(size), dtype=self._dtype)
            dist.recv(shard, src=move.source)
            _copy(rule.pieces(shard, full, part, size))

        return receive


def _copy(pieces: Sequence[tuple[Tensor, Tensor]]) -> None:
    for ours, theirs in pieces:
        theirs.copy_(ours)
