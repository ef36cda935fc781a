"""From a run's configuration to the way its weights take."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nemo_ibtpo.config.schema import RolloutConfig
from nemo_ibtpo.rollout.transport.cuda_ipc import CudaIpcTransport, refuse_expandable_segments
from nemo_ibtpo.rollout.transport.gathered import GatheredTransport
from nemo_ibtpo.rollout.transport.host_writer import HostWriter
from nemo_ibtpo.rollout.transport.protocol import WeightSource, WeightTransport
from nemo_ibtpo.rollout.transport.shared_memory import SharedMemoryTransport


def make_transport(
    config: RolloutConfig, source: WeightSource, engine_ranks: Sequence[int], device: torch.device
) -> WeightTransport:
    """The transport that fits engines, devices and hosts; a collective over all ranks.

    CUDA IPC serves engines on one GPU where the ranks of a host hold the whole model between them, so that gathering
    it stays on the host.

    Args:
        config: of the engines.
        source: the actor, whose weights keep their shapes and their places.
        engine_ranks: the ranks that own an engine.
        device: of this rank.

    Raises:
        UserError: the environment rules out CUDA IPC.
    """
    if config.engine == "transformers":
        return GatheredTransport()
    one_gpu = device.type == "cuda" and config.tensor_parallel_size == 1
    if one_gpu:
        refuse_expandable_segments()
    writer = HostWriter(source, engine_ranks)
    if one_gpu and not writer.crosses_hosts:
        return CudaIpcTransport(writer)
    return SharedMemoryTransport(writer)
