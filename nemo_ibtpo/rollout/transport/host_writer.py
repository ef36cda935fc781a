"""The actor's weights into memory that the ranks and engines of a host share, each rank writing its own parts.

Nothing is gathered. A part that a host lacks (pipeline stages of other hosts) crosses the network once for that host,
from device to device: NCCL between GPUs, gloo between CPUs. Who copies, sends and receives what is planned once; all
ranks go through the plan in one order, bucket by bucket, which bounds what a rank holds on the way.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_ibtpo.collectives import gather_from_all
from nemo_ibtpo.rollout.transport.memory import HostMemory, lay_out, this_host
from nemo_ibtpo.rollout.transport.moves import Move, Part, cut_into_buckets, plan_moves
from nemo_ibtpo.rollout.transport.protocol import WeightSource

BUCKET_BYTES = 32 * 2**20  # an engine loads one bucket while the next one is written


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a part lies in its whole weight, in elements, as ``torch.as_strided`` counts."""

    weight_shape: tuple[int, ...]
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass
class Written:
    """Bytes of this rank since it was made, measured as they were moved.

    Attributes:
        sent, received: over the network.
        copied: into the host's memory.
        most_staged: the most that was held at once on the way, of one bucket.
        buckets: how many were gone through.
    """

    sent: int = 0
    received: int = 0
    copied: int = 0
    most_staged: int = 0
    buckets: int = 0


@dataclass
class _Bucket:
    """This rank's share of a bucket, and the weights that are complete on this host after it."""

    names: list[str] = field(default_factory=list)
    copies: list[Part] = field(default_factory=list)
    sends: dict[int, list[Part]] = field(default_factory=lambda: defaultdict(list))
    receives: dict[int, list[Part]] = field(default_factory=lambda: defaultdict(list))


class HostWriter:
    """This rank's part; making one is a collective over all ranks.

    Args:
        source: the actor, whose weights keep their shapes and their places.
        engine_ranks: the ranks that own an engine; hosts without one get no weights.
        host: what tells this host from others; ranks with the same one can share memory.
        bucket_bytes: most that a rank copies, sends and receives at once.

    Attributes:
        memory: of this host; None if it needs no weights.
        least_network_bytes: of an update, that hosts with an engine lack; no plan can send less.
        written: what has been moved.

    Raises:
        RuntimeError: no rank has a part of a weight; it is named.
    """

    def __init__(
        self,
        source: WeightSource,
        engine_ranks: Sequence[int],
        host: str | None = None,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._bucket_bytes = bucket_bytes
        self.written = Written()
        mine = self._parts(source)
        first = next(iter(mine.values()))[1]
        self._device, self._dtype = first.device, first.dtype
        places = {part: place for part, (place, _) in mine.items()}
        source.release_weights()
        everyone = gather_from_all((this_host() if host is None else host, places))
        hosts = [one for one, _ in everyone]
        self._places = {part: place for _, held in everyone for part, place in held.items()}
        targets = list(dict.fromkeys(hosts[rank] for rank in engine_ranks))
        shapes = {part.name: place.weight_shape for part, place in self._places.items()}
        self._refuse_gaps(shapes)
        self.memory = self._share_memory(shapes, hosts, targets)
        moves = plan_moves(self._sizes(shapes), [held.keys() for _, held in everyone], hosts, targets)
        self.least_network_bytes = self._lacking(everyone, targets)
        self._on_host, self._network = self._groups(hosts, targets)
        self._buckets = self._share_of_buckets(moves, hosts)

    @torch.no_grad()
    def write(self, source: WeightSource) -> Iterator[list[str]]:
        """Write the weights; yields the names of those that are complete in this host's memory, bucket by bucket.

        A collective over all ranks, which must consume it to the end. No engine of this host may read the memory when
        the first rank calls it. On a host that needs no weights it yields nothing.
        """
        if self.memory is not None:
            self.memory.state = "partial"
        parts = {part: tensor for part, (_, tensor) in self._parts(source).items()}
        for bucket in self._buckets:
            self._move(bucket, parts)
            if self._on_host is not None:
                dist.barrier(group=self._on_host)
                yield bucket.names
        if self.memory is not None:
            self.memory.state = "complete"

    def barrier(self) -> None:
        """Wait for the other ranks of a host that needs the weights."""
        if self._on_host is not None:
            dist.barrier(group=self._on_host)

    def close(self) -> None:
        """Let go of the memory."""
        if self.memory is not None:
            self.memory.close()

    @property
    def crosses_hosts(self) -> bool:
        """Whether anything has to go over the network."""
        return self.least_network_bytes > 0

    # --- planning ------------------------------------------------------------------------------------------------

    def _parts(self, source: WeightSource) -> dict[Part, tuple[_Place, Tensor]]:
        """What this rank holds, cut into parts of at most a bucket."""
        parts = {}
        for shard in source.weight_shards():
            rows = max(1, self._bucket_bytes // max(1, shard.tensor[0].nbytes))
            for start in range(0, len(shard.tensor), rows):
                tensor = shard.tensor[start : start + rows]
                place = _Place(shard.shape, tuple(tensor.shape), shard.stride)
                parts[Part(shard.name, shard.offset + start * shard.stride[0])] = place, tensor
        return parts

    def _refuse_gaps(self, shapes: dict[str, tuple[int, ...]]) -> None:
        held: dict[str, int] = defaultdict(int)
        for part, place in self._places.items():
            held[part.name] += place.numel
        for name, shape in shapes.items():
            if held[name] != math.prod(shape):
                raise RuntimeError(f"ranks hold {held[name]} of the {math.prod(shape)} elements of {name}")

    def _share_memory(
        self, shapes: dict[str, tuple[int, ...]], hosts: list[str], targets: list[str]
    ) -> HostMemory | None:
        host, pinned = hosts[dist.get_rank()], self._device.type == "cuda"
        first = hosts.index(host)
        memory = None
        if host in targets and dist.get_rank() == first:
            memory = HostMemory(shapes, self._dtype, pinned=pinned)
        paths = gather_from_all(memory.layout.path if memory else "")
        if host in targets and memory is None:
            memory = HostMemory(shapes, self._dtype, paths[first], pinned)
        dist.barrier()  # the one that made it may not end before all have it
        return memory

    def _sizes(self, shapes: dict[str, tuple[int, ...]]) -> dict[Part, int]:
        """Bytes of all parts, in the order in which the weights lie in memory."""
        order = {tensor.name: i for i, tensor in enumerate(lay_out(shapes, self._dtype)[0])}
        parts = sorted(self._places, key=lambda part: (order[part.name], part.offset))
        return {part: self._places[part].numel * self._dtype.itemsize for part in parts}

    def _groups(
        self, hosts: list[str], targets: list[str]
    ) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
        """The ranks of this host if it needs weights, and all ranks if anything has to go over the network."""
        on_host = None
        for target in targets:
            group = dist.new_group([rank for rank, host in enumerate(hosts) if host == target], backend="gloo")
            if hosts[dist.get_rank()] == target:
                on_host = group
        if not self.crosses_hosts:
            return on_host, None
        network = dist.new_group(backend="nccl" if self._device.type == "cuda" else "gloo")
        # NCCL makes a group's communicator at its first call, in which all ranks have to take part.
        dist.all_reduce(torch.zeros(1, device=self._device), group=network)
        return on_host, network

    def _lacking(self, everyone: Sequence[tuple[str, Mapping[Part, _Place]]], targets: Sequence[str]) -> int:
        lacking = 0
        for target in targets:
            local = {part for host, held in everyone if host == target for part in held}
            lacking += sum(place.numel for part, place in self._places.items() if part not in local)
        return lacking * self._dtype.itemsize

    def _share_of_buckets(self, moves: list[Move], hosts: list[str]) -> list[_Bucket]:
        me, host = dist.get_rank(), hosts[dist.get_rank()]
        missing: dict[str, int] = defaultdict(int)
        for move in moves:
            missing[move.part.name] += hosts[move.writer] == host
        buckets = []
        for bucket_moves in cut_into_buckets(moves, self._bucket_bytes):
            bucket = _Bucket()
            for move in bucket_moves:
                if me == move.source == move.writer:
                    bucket.copies.append(move.part)
                elif me == move.source:
                    bucket.sends[move.writer].append(move.part)
                elif me == move.writer:
                    bucket.receives[move.source].append(move.part)
                if hosts[move.writer] == host:
                    missing[move.part.name] -= 1
                    if not missing[move.part.name]:
                        bucket.names.append(move.part.name)
            buckets.append(bucket)
        return buckets

    # --- moving --------------------------------------------------------------------------------------------------

    def _move(self, bucket: _Bucket, parts: dict[Part, Tensor]) -> None:
        outgoing = {peer: torch.cat([parts[p].reshape(-1) for p in sent]) for peer, sent in bucket.sends.items()}
        incoming = {
            peer: torch.empty(sum(self._places[p].numel for p in got), dtype=self._dtype, device=self._device)
            for peer, got in bucket.receives.items()
        }
        operations = [dist.P2POp(dist.isend, flat, peer, self._network) for peer, flat in outgoing.items()]
        operations += [dist.P2POp(dist.irecv, flat, peer, self._network) for peer, flat in incoming.items()]
        under_way = dist.batch_isend_irecv(operations) if operations else []
        arriving = [(part, parts[part]) for part in bucket.copies]
        copied = self._copy(arriving)
        for operation in under_way:
            operation.wait()
        for peer, flat in incoming.items():
            pieces = flat.split([self._places[part].numel for part in bucket.receives[peer]])
            arriving = [
                (part, piece.view(self._places[part].shape))
                for part, piece in zip(bucket.receives[peer], pieces, strict=True)
            ]
            copied += self._copy(arriving)
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        for place, bounce in copied:
            place.copy_(bounce)
        staged = [*outgoing.values(), *incoming.values()]
        self.written.buckets += 1
        self.written.sent += sum(flat.nbytes for flat in outgoing.values())
        self.written.received += sum(flat.nbytes for flat in incoming.values())
        self.written.most_staged = max(self.written.most_staged, sum(flat.nbytes for flat in staged))

    def _copy(self, arriving: Sequence[tuple[Part, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Copy parts to their places; what is left to do once the device is done, as (place, pinned copy).

        A GPU copies to contiguous memory only; the columns of a matrix take the way over a pinned copy.
        """
        assert self.memory is not None or not arriving
        left = []
        for part, tensor in arriving:
            whole = self.memory.weights[part.name]  # type: ignore[union-attr]
            at = self._places[part]
            place = whole.as_strided(at.shape, at.stride, whole.storage_offset() + part.offset)
            if tensor.is_cuda and not place.is_contiguous():
                bounce = torch.empty(at.shape, dtype=self._dtype, pin_memory=True)
                bounce.copy_(tensor, non_blocking=True)
                left.append((place, bounce))
            else:
                place.copy_(tensor, non_blocking=True)
            self.written.copied += tensor.nbytes
        return left
