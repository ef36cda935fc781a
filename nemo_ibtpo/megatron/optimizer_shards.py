"""The distributed optimizer's state as pieces of full tensors, without any exchange between ranks.

A rank of Megatron's distributed optimizer holds a range of the flattened elements of each parameter. Megatron-Core
0.16 and 0.19 write that state in a form that any layout reads only after one rank has gathered it
(``fully_reshardable``); the form without gathering (``fully_sharded_model_space``) was taken out. A range of a tensor
in row-major order is a few boxes: the rest of a row, whole rows, the beginning of a row. Each rank describes its own
boxes, and the tensors on the disk have the names and shapes that Megatron's ``fully_reshardable`` gives them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

Box = tuple[tuple[int, ...], tuple[int, ...]]
FlatStates = dict[torch.nn.Parameter, dict[str, Tensor]]

_KINDS = ("param", "exp_avg", "exp_avg_sq")


def boxes(shape: Sequence[int], start: int, end: int) -> Iterator[Box]:
    """Boxes that hold the elements ``[start, end)`` of a tensor in row-major order, each element once, in order.

    Args:
        shape: of the tensor.
        start: within ``[0, end]``.
        end: at most the number of elements.

    Returns:
        Offsets and sizes of each box, one entry a dimension; at most two boxes for each dimension but the last.
    """
    if start >= end:
        return
    if not shape:
        yield (), ()
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), end // row
    if first > last:  # both ends lie within one row
        parts = [(last, start - last * row, end - last * row)]
    else:
        parts = [(first - 1, start - (first - 1) * row, row)] if start < first * row else []
    for number, begins, ends in parts:
        yield from (((number, *offset), (1, *size)) for offset, size in boxes(shape[1:], begins, ends))
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if first <= last and last * row < end:
        yield from (((last, *offset), (1, *size)) for offset, size in boxes(shape[1:], 0, end - last * row))


def pieces(
    part: DistributedOptimizer, weights: Mapping[str, Any], loaded: FlatStates | None = None
) -> dict[int, dict[str, list[ShardedTensor]]]:
    """What this rank holds of main parameters and moments, as boxes of full tensors.

    Args:
        part: an optimizer whose state exists.
        weights: Megatron's description of the weights that it trains.
        loaded: filled with a float32 tensor in host memory for each kind of state of a parameter, which the boxes
            are views of; None describes the state itself.
    """
    described, _ = extract_sharded_tensors_and_factories(dict(weights))
    of_parameter = {entry.data: entry for entry in nested_values(described)}
    found: dict[int, dict[str, list[ShardedTensor]]] = {}
    for parameter, own in _own_ranges(part):
        if loaded is None:
            states = part._get_main_param_and_optimizer_states(parameter)
        else:
            states = loaded[parameter] = {kind: torch.empty(own.end - own.start) for kind in _KINDS}
        parts = list(_described(of_parameter[parameter], own.start, own.end))
        found[len(found)] = {
            kind: [
                _box(shard, f"optimizer.state.{kind}", states[kind].detach()[own_range]) for shard, own_range in parts
            ]
            for kind in _KINDS
        }
    return found


@torch.no_grad()
def take_over(part: DistributedOptimizer, loaded: FlatStates) -> None:
    """Set main parameters and moments to the tensors that :func:`pieces` has made and a checkpoint has filled."""
    for parameter, _ in _own_ranges(part):
        part._set_main_param_and_optimizer_states(parameter, loaded[parameter])


def _own_ranges(part: DistributedOptimizer) -> Iterator[tuple[torch.nn.Parameter, Any]]:
    """Parameters of which this rank holds elements, with their range among the flattened elements."""
    for ranges in part.gbuf_ranges:
        for bucket in (bucket for buckets in ranges.values() for bucket in buckets):
            for parameter, places in bucket["param_map"].items():
                yield parameter, places["param"]


def _described(
    entry: ShardedTensor | ShardedTensorFactory, own_start: int, own_end: int
) -> Iterator[tuple[ShardedTensor, slice]]:
    """The boxes in which a rank holds a range of a parameter's flattened elements.

    Returns:
        Each box as a shard without data, under the parameter's own name, and where it lies in what the rank holds.
    """
    for shard in _shards(entry):
        begins, axes = shard.data.storage_offset(), shard.prepend_axis_num
        start, end = max(own_start - begins, 0), min(own_end - begins, shard.data.numel())
        position = begins + start - own_start
        for offset, size in boxes(tuple(shard.local_shape), start, end):
            numel = math.prod(size)
            yield (
                replace(
                    shard,
                    data=None,
                    local_shape=(1,) * axes + size,
                    global_offset=tuple(
                        a + b for a, b in zip(shard.global_offset, (0,) * axes + offset, strict=True)
                    ),
                    axis_fragmentations=None,  # no regular grid
                    replica_id=(*shard.replica_id[:2], 0),  # no other data-parallel rank has it
                    prepend_axis_num=0,
                ),
                slice(position, position + numel),
            )
            position += numel


def _shards(entry: ShardedTensor | ShardedTensorFactory) -> list[ShardedTensor]:
    """The shards that a parameter is saved as, on views of a tensor without memory that tell where each one lies."""
    shape = torch.empty_like(entry.data, device="meta")
    if not isinstance(entry, ShardedTensorFactory):
        return [replace(entry, data=shape)]
    shards = list(nested_values({"": entry.build_fn(entry.key, shape, entry.replica_id, None)}))
    if not all(shard.data.is_contiguous() for shard in shards):
        raise RuntimeError(f"{entry.key} is saved in parts that are no runs of its elements")
    return shards


def _box(shard: ShardedTensor, prefix: str, flat: Tensor) -> ShardedTensor:
    """A box of a state of the optimizer; ``flat`` are its elements."""
    return replace(shard, key=f"{prefix}.{shard.key}", data=flat.view(shard.local_shape), dtype=flat.dtype)
