"""Weights and optimizer state in Megatron's ``torch_dist`` format, which any parallel layout can read.

A checkpoint holds full tensors under global names, cut into the shards that the ranks had; whoever loads asks for
the slices it needs. So TP, PP, interleaving, SP and DP may differ between the run that saved and the run that loads.
Only ``use_distributed_optimizer`` may not, since the two kinds of optimizer keep other tensors.

Three things of Megatron-Core 0.16 and 0.19 are mended here; ``tests/distributed/test_checkpoint.py`` sees each:

- The gathered optimizer state is cut by offsets that count the padding between buckets, while the padding has been
  left out of it ("param range exceeds unpadded buffer"). It is real: a tied embedding has a bucket of its own, and
  its moments come back shifted. Gathering also takes three times the memory of what is gathered. ``_gather`` keeps
  the padding in and collects in place.
- torch's Adam has no state before its first step and keeps ``step`` with each parameter; Megatron expects it in the
  group, and hands one ``step`` tensor to all parameters, which then count each update many times.
- The writer of 0.16 forks processes, which inherit the locks of gloo, CUDA and the engine. PyTorch's own writer works
  in this one, one tensor after the other.

Hyperparameters are those of the run that loads; a checkpoint brings back what training has made.

torch reads ``.metadata`` as a pickle: load checkpoints of sources you trust.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch.distributed.checkpoint import CheckpointException

from nemo_ibtpo.config.errors import UserError

Module = torch.nn.Module

_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    # Data-parallel rank 0 gathers in host memory, the others hold nothing.
    "distrib_optim_fully_reshardable_mem_efficient": True,
    "chained_optim_avoid_prefix": True,
}
_KINDS = ("param", "exp_avg", "exp_avg_sq")
_OPTIMIZER, _EXTRA = "optimizer", "extra"


def save_weights(path: Path, chunks: Sequence[Module]) -> None:
    """Write the weights alone; a collective over all ranks.

    Args:
        path: made if it is not there; empty.
        chunks: this rank's model chunks, wrapped for training or not.
    """
    _save(path, _weights(chunks))


def load_weights(path: Path, chunks: Sequence[Module]) -> None:
    """Fill the model chunks from a checkpoint, with or without optimizer state; a collective over all ranks.

    Raises:
        UserError: a weight is missing there or has another shape; it is named.
    """
    _fill(chunks, _load(path, _weights(chunks)))


def save_training_state(
    path: Path, chunks: Sequence[Module], optimizer: MegatronOptimizer, extra: Mapping[str, Any]
) -> None:
    """Write weights and optimizer state; a collective over all ranks.

    Args:
        path: made if it is not there; empty.
        chunks: this rank's model chunks, wrapped for training or not.
        optimizer: over these chunks.
        extra: small values that are the same on every rank, such as the learning-rate schedule's.
    """
    state = _weights(chunks)
    _initialise(optimizer)
    with _gathering(optimizer):
        state[_OPTIMIZER] = optimizer.sharded_state_dict(dict(state), metadata=_METADATA)
    for part in state[_OPTIMIZER].values() if len(_parts(optimizer)) > 1 else [state[_OPTIMIZER]]:
        if "param_state" in part and part["param_state"] is None:
            part["param_state"] = {}  # on the ranks that hold nothing; None would pass for a difference
    _save(path, state | {_EXTRA: dict(extra)})


def load_training_state(path: Path, chunks: Sequence[Module], optimizer: MegatronOptimizer) -> dict[str, Any]:
    """Fill model chunks and optimizer; what was saved as ``extra``. A collective over all ranks.

    Raises:
        UserError: something is missing there or has another shape; it is named.
    """
    state = _weights(chunks)
    _initialise(optimizer)
    with _gathering(optimizer):
        state[_OPTIMIZER] = optimizer.sharded_state_dict(dict(state), is_loading=True, metadata=_METADATA)
    loaded = _load(path, state)
    _fill(chunks, loaded)
    parts = _parts(optimizer)
    states = [loaded[_OPTIMIZER]] if len(parts) == 1 else [loaded[_OPTIMIZER][i] for i in range(len(parts))]
    for part, part_state in zip(parts, states, strict=True):
        _fill_optimizer(part, part_state)
    extra: dict[str, Any] = loaded[_EXTRA]
    return extra


def _weights(chunks: Sequence[Module]) -> dict[str, Any]:
    # Megatron keeps an extra state per linear layer for FP8, which is not used here and empty.
    return {
        f"model{number}": {
            name: value
            for name, value in _unwrapped(chunk).sharded_state_dict(metadata=dict(_METADATA)).items()
            if not name.endswith("_extra_state")
        }
        for number, chunk in enumerate(chunks)
    }


def _fill(chunks: Sequence[Module], loaded: Mapping[str, Any]) -> None:
    for number, chunk in enumerate(chunks):
        result = _unwrapped(chunk).load_state_dict(loaded[f"model{number}"], strict=False)
        missing = [name for name in result.missing_keys if not name.endswith("_extra_state")]
        if missing or result.unexpected_keys:
            raise RuntimeError(f"model and checkpoint differ: missing {missing}, extra {result.unexpected_keys}")


def _unwrapped(chunk: Module) -> Any:
    return chunk.module if hasattr(chunk, "ddp_config") else chunk


def _parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    return list(optimizer.chained_optimizers) if isinstance(optimizer, ChainedOptimizer) else [optimizer]


def _initialise(optimizer: MegatronOptimizer) -> None:
    """Give the optimizer the state that it would make at its first step."""
    for part in _parts(optimizer):
        inner = part.optimizer
        if inner is None:
            continue
        part.init_state_fn(inner, part.config)
        if isinstance(inner, torch.optim.Adam | torch.optim.AdamW):
            for state in inner.state.values():
                state.setdefault("step", torch.tensor(0.0))


def _fill_optimizer(part: MegatronOptimizer, state: dict[str, Any]) -> None:
    settings = [
        {name: value for name, value in group.items() if name not in ("params", "step")}
        for group in part.param_groups
    ]
    if isinstance(part, DistributedOptimizer):
        moments = state.pop("param_state")
        part.load_state_dict(state)
        states = part.optimizer.state.values()
        steps = [own.pop("step", None) for own in states]
        part.load_parameter_state_from_fully_reshardable(moments)
        for own, step in zip(states, steps, strict=True):
            if step is not None:
                own["step"] = step.clone()
    else:
        part.load_state_dict(state)
    for group, own_settings in zip(part.param_groups, settings, strict=True):
        group.update(own_settings)


@contextlib.contextmanager
def _gathering(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Within the context sharded optimizers gather their state with :func:`_gather`."""
    sharded = [part for part in _parts(optimizer) if isinstance(part, DistributedOptimizer)]
    for part in sharded:
        part.get_parameter_state_dp_zero = partial(_gather, part)
    try:
        yield
    finally:
        for part in sharded:
            del part.get_parameter_state_dp_zero  # the class's own is back


def _gather(part: DistributedOptimizer, *, empty_data: bool = False, **_: Any) -> dict[Any, Any] | None:
    """Main parameters and moments of all data-parallel ranks, in the form of Megatron's own method.

    Args:
        empty_data: make room for what is going to be loaded, on every rank.

    Returns:
        By number of the buffer and dtype, for each kind of state a float32 tensor in host memory as long as the
        padded buffer; None but on the first data-parallel rank, unless ``empty_data``.
    """
    group = part.data_parallel_group_gloo
    collects = empty_data or group.rank() == 0
    state: dict[Any, Any] = {"buckets_coalesced": True}
    for number, (buffer, ranges) in enumerate(zip(part.buffers, part.gbuf_ranges, strict=True)):
        ((dtype, ranges_of_buckets),) = ranges.items()
        full = {kind: torch.zeros(buffer.numel) for kind in _KINDS} if collects else {}
        state[number] = {dtype: full}
        if empty_data:
            continue
        for kind, (bucket, own) in product(_KINDS, list(zip(buffer.buckets, ranges_of_buckets, strict=True))):
            numel = bucket.grad_data.numel()
            shard = torch.zeros(numel // group.size())
            for parameter, place in own["param_map"].items():
                value = part._get_main_param_and_optimizer_states(parameter)[kind]
                shard[place["gbuf_local"].start : place["gbuf_local"].end] = value.detach()
            pieces = None
            if collects:
                pieces = list(full[kind][bucket.offset : bucket.offset + numel].chunk(group.size()))
            dist.gather(shard, pieces, dst=dist.get_global_rank(group, 0), group=group)
    return state if collects else None


class _Writer(TorchDistSaveShardedStrategy):
    """Megatron's layout written by PyTorch's writer."""

    def save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> None:
        renamed, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, keep_only_main_replica=True)
        dcp.save(
            mcore_to_pyt_state_dict(renamed, False),
            storage_writer=dcp.FileSystemWriter(str(checkpoint_dir), single_file_per_rank=True, sync_files=True),
            planner=MCoreSavePlanner(flatten_state_dict=False),
        )


def _save(path: Path, state: dict[str, Any]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    try:
        dist_checkpointing.save(state, str(path), sharded_strategy=_Writer("torch_dist", 1))
    except (OSError, CheckpointException) as error:
        raise UserError(f"{path}: the checkpoint cannot be written: {_reason(error)}") from error


def _load(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = dist_checkpointing.load(state, str(path))
    except (CheckpointingException, CheckpointException, KeyError, ValueError) as error:
        raise UserError(f"{path}: this checkpoint does not fit the model: {_reason(error)}") from error
    return loaded


def _reason(error: BaseException) -> str:
    # torch's exception, which is no ``Exception``, carries those of the ranks.
    failures = (
        [failure for failure, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    )
    return " ".join(str(failures[0]).split())[:400]


def tensor_names(path: Path) -> dict[str, tuple[int, ...]]:
    """Global names and shapes of the tensors in a checkpoint; needs no process groups."""
    found = dcp.FileSystemReader(str(path)).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in found.items() if hasattr(entry, "size")}
