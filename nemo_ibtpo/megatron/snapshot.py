"""A state of the actor at one moment, and how it gets to the disk.

Taking a snapshot is a collective that Megatron's own checks belong to. Writing it uses one process group and nothing
of Megatron's state, so that a thread can do it while training goes on, if the snapshot has been copied to host
memory. Megatron's asynchronous writers are not used: ``AsyncCallsQueue`` forks each rank with its threads, or starts
a process that needs a GPU and is sent every tensor.

Ranks that hold the same tensor share the writing, in the way of Megatron's fully parallel strategy. PyTorch's writer
puts what a rank writes into one file.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.exchange_utils import determine_main_replica_uniform_distribution
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.serialization import get_default_save_common_strategy
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    distribute_main_replicas_with_precomputed_distribution,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException

from nemo_ibtpo.collectives import from_rank_0
from nemo_ibtpo.config.errors import UserError


class HostMemory:
    """Host memory that snapshots are copied to, one after the other; pinned beside a GPU.

    It is kept between them, since making it takes longer than copying.
    """

    def __init__(self) -> None:
        self._buffers: dict[Any, Tensor] = {}

    def copy(self, key: Any, tensor: Tensor) -> Tensor:
        """A copy that is complete after :meth:`wait`; it overwrites the one before under this key."""
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[key] = buffer
        return buffer.copy_(tensor, non_blocking=True)

    @staticmethod
    def wait() -> None:
        """All copies are complete when this returns."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()


class Snapshot:
    """What is to be written: this rank's share of all tensors, and what is the same on all ranks.

    Args:
        state: a state dictionary of Megatron's sharded tensors and small values; a collective over all ranks.
        memory: where tensors are copied to; None keeps the tensors themselves, which must not change until they are
            written.
    """

    def __init__(self, state: dict[str, Any], memory: HostMemory | None) -> None:
        sharded, common = save_preprocess(state)
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        distribution = determine_main_replica_uniform_distribution(sharded, group)
        distribute_main_replicas_with_precomputed_distribution(sharded, group, distribution)
        if memory is not None:
            common = copy.deepcopy(common)
            for shard in nested_values(sharded):
                if isinstance(shard, ShardedTensor) and is_main_replica(shard.replica_id):
                    shard.data = memory.copy((shard.key, shard.global_offset), shard.data.detach())
            memory.wait()
        renamed, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
        self._tensors = mcore_to_pyt_state_dict(renamed, False)
        self._common = common

    def write(self, path: Path, group: dist.ProcessGroup | None = None) -> None:
        """Write into an empty directory; a collective over all ranks.

        Args:
            path: made if it is not there.
            group: of all ranks; nothing else may use it meanwhile.

        Raises:
            UserError: something cannot be written; on every rank.
        """
        try:
            from_rank_0(lambda: self._write_small_files(path), group)
            dcp.save(
                self._tensors,
                storage_writer=dcp.FileSystemWriter(str(path), single_file_per_rank=True, sync_files=True),
                planner=_Planner(flatten_state_dict=False),
                process_group=group,
            )
        except (OSError, CheckpointException) as error:
            raise UserError(f"{path}: the checkpoint cannot be written: {reason(error)}") from error

    def _write_small_files(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            get_default_save_common_strategy().save_common(self._common, str(path))
            save_config(CheckpointingConfig("torch_dist", 1), str(path))
        except OSError as error:
            raise UserError(f"{path}: the checkpoint cannot be written: {reason(error)}") from error


class _Planner(MCoreSavePlanner):
    def create_local_plan(self) -> Any:
        """Megatron's plan; that a tensor was pinned is no property of what is on the disk."""
        plan = super().create_local_plan()
        for item in plan.items:
            if item.tensor_data is not None:
                item.tensor_data.properties.pin_memory = False
        return plan


def reason(error: BaseException) -> str:
    """An error of Megatron or torch in one line."""
    # torch's exception, which is no ``Exception``, carries those of the ranks.
    failures = (
        [failure for failure, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    )
    return " ".join(str(failures[0]).split())[:400]
