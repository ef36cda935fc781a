"""Weights and optimizer state in Megatron's ``torch_dist`` format, which any parallel layout can read.

A checkpoint holds full tensors under global names, cut into the shards that the ranks had; whoever loads asks for
the slices it needs. So TP, PP, interleaving, SP and DP may differ between the run that saved and the run that loads.
Only ``use_distributed_optimizer`` may not, since the two kinds of optimizer keep other tensors.

No rank gathers anything: each writes and reads what it holds (``optimizer_shards.py``), and ``snapshot.py`` brings it
to the disk. Two more things of Megatron-Core 0.16 and 0.19 are mended here; ``tests/distributed/test_checkpoint.py``
sees both:

- torch's Adam has no state before its first step and keeps ``step`` with each parameter; Megatron expects it in the
  group, and hands one ``step`` tensor to all parameters, which then count each update many times.
- The writer of 0.16 forks processes, which inherit the locks of gloo, CUDA and the engine. PyTorch's own writer works
  in this one.

Hyperparameters are those of the run that loads; a checkpoint brings back what training has made.

torch reads ``.metadata`` as a pickle: load checkpoints of sources you trust.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch.distributed.checkpoint import CheckpointException

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.megatron.optimizer_shards import FlatStates, pieces, take_over
from nemo_ibtpo.megatron.snapshot import HostMemory, Snapshot, reason

Module = torch.nn.Module

_METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
_OPTIMIZER, _EXTRA = "optimizer", "extra"


def save_weights(path: Path, chunks: Sequence[Module]) -> None:
    """Write the weights alone; a collective over all ranks.

    Args:
        path: made if it is not there; empty.
        chunks: this rank's model chunks, wrapped for training or not.
    """
    Snapshot(_weights(chunks), None).write(path)


def load_weights(path: Path, chunks: Sequence[Module]) -> None:
    """Fill the model chunks from a checkpoint, with or without optimizer state; a collective over all ranks.

    Raises:
        UserError: a weight is missing there or has another shape; it is named.
    """
    _fill(chunks, _load(path, _weights(chunks)))


def training_state(
    chunks: Sequence[Module],
    optimizer: MegatronOptimizer,
    extra: Mapping[str, Any],
    memory: HostMemory | None = None,
) -> Snapshot:
    """Weights and optimizer state of this moment, to be written; a collective over all ranks.

    Args:
        chunks: this rank's model chunks, wrapped for training or not.
        optimizer: over these chunks.
        extra: small values that are the same on every rank, such as the learning-rate schedule's.
        memory: where they are copied to; without, they must not change until they are written.
    """
    state = _weights(chunks)
    _initialise(optimizer)
    state[_OPTIMIZER] = _optimizer_state(optimizer, state)
    return Snapshot(state | {_EXTRA: dict(extra)}, memory)


def load_training_state(path: Path, chunks: Sequence[Module], optimizer: MegatronOptimizer) -> dict[str, Any]:
    """Fill model chunks and optimizer; what was saved as ``extra``. A collective over all ranks.

    Raises:
        UserError: something is missing there or has another shape; it is named.
    """
    state = _weights(chunks)
    _initialise(optimizer)
    moments: FlatStates = {}
    state[_OPTIMIZER] = _optimizer_state(optimizer, state, moments)
    loaded = _load(path, state)
    _fill(chunks, loaded)
    parts, states = _parts(optimizer), loaded[_OPTIMIZER]
    for number, part in enumerate(parts):
        _fill_optimizer(part, states[number] if len(parts) > 1 else states, moments)
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


def _optimizer_state(
    optimizer: MegatronOptimizer, weights: Mapping[str, Any], loaded: FlatStates | None = None
) -> dict[Any, Any]:
    """Megatron's description of an optimizer whose state exists; ``loaded`` is that of :func:`pieces`, to load."""
    parts = _parts(optimizer)
    if not isinstance(parts[0], DistributedOptimizer):
        state: dict[Any, Any] = optimizer.sharded_state_dict(
            dict(weights), is_loading=loaded is not None, metadata=_METADATA
        )
        return state
    if len(parts) > 1:
        optimizer._synchronize_steps()
    # As Megatron's own method, which collects all garbage of the process besides. An empty "param_state" would pass
    # for a difference between ranks.
    states = []
    for part in parts:
        found = pieces(part, weights, loaded)
        kind = {"param_state_sharding_type": "fully_reshardable"}
        states.append(part.state_dict() | kind | ({"param_state": found} if found else {}))
    return dict(enumerate(states)) if len(states) > 1 else states[0]


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


def _fill_optimizer(part: MegatronOptimizer, state: dict[str, Any], moments: FlatStates) -> None:
    settings = [
        {name: value for name, value in group.items() if name not in ("params", "step")}
        for group in part.param_groups
    ]
    if isinstance(part, DistributedOptimizer):
        state.pop("param_state", None)  # ``moments`` has been filled
        part.load_state_dict(state)
        states = part.optimizer.state.values()
        steps = [own.pop("step", None) for own in states]
        take_over(part, moments)
        for own, step in zip(states, steps, strict=True):
            if step is not None:
                own["step"] = step.clone()
    else:
        part.load_state_dict(state)
    for group, own_settings in zip(part.param_groups, settings, strict=True):
        group.update(own_settings)


def _load(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = dist_checkpointing.load(state, str(path))
    except (CheckpointingException, CheckpointException, KeyError, ValueError) as error:
        raise UserError(f"{path}: this checkpoint does not fit the model: {reason(error)}") from error
    return loaded


def tensor_names(path: Path) -> dict[str, tuple[int, ...]]:
    """Global names and shapes of the tensors in a checkpoint; needs no process groups."""
    found = dcp.FileSystemReader(str(path)).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in found.items() if hasattr(entry, "size")}
