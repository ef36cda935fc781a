"""Seconds of a refit, from the bytes that the transport's own plan moves.

The parts of a model are laid over ranks and nodes as Megatron numbers them (tensor-parallel ranks next to each other,
pipeline stages furthest apart), and counted by the function that plans the real moves.
"""

from __future__ import annotations

from collections.abc import Mapping

from nemo_ibtpo.config.layout import engine_ranks
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.planning.assumptions import Assumptions
from nemo_ibtpo.planning.memory import EngineMemory
from nemo_ibtpo.planning.model_shape import ModelShape
from nemo_ibtpo.planning.parameters import Layout, chunk_parameters
from nemo_ibtpo.rollout.transport.moves import Part, Traffic, plan_moves, traffic

_PIECES = 64  # a rank's weights are moved in so many parts at least, which lets ranks share the work evenly


def refit_traffic(
    config: RunConfig, shape: ModelShape, layout: Layout, world_size: int, assumptions: Assumptions
) -> Traffic:
    """Bytes that each rank sends, receives and writes in an update of all engines."""
    node = int(assumptions.gpus_per_node)
    sizes: dict[Part, int] = {}
    holders: list[set[Part]] = []
    stage_ranks = layout.tensor * layout.replicas
    for rank in range(world_size):
        stage, within = divmod(rank, stage_ranks)
        held = _held(shape, layout, stage, within % layout.tensor, within % layout.expert)
        sizes |= held
        holders.append(set(held))
    hosts = [rank // node for rank in range(world_size)]
    targets = list(dict.fromkeys(hosts[rank] for rank in engine_ranks(config, world_size)))
    return traffic(plan_moves(sizes, holders, hosts, targets))


def refit_seconds(
    config: RunConfig,
    shape: ModelShape,
    layout: Layout,
    world_size: int,
    engine: EngineMemory,
    assumptions: Assumptions,
) -> float:
    """Seconds until all engines have the weights; the slowest rank decides.

    A rank sends and receives a bucket, then copies it to the host's memory; meanwhile engines load the one before.
    An engine on one GPU whose node holds the whole model is fed by CUDA IPC after that, from weights gathered over
    NVLink. Not counted: rows that the host's processor puts in place where a rank holds columns of a matrix.
    """
    moved = refit_traffic(config, shape, layout, world_size, assumptions)
    pcie = assumptions.pcie_gb_s * 1e9
    over_network = max((*moved.sent.values(), *moved.received.values()), default=0) / (assumptions.network_gb_s * 1e9)
    written = max(moved.written.values()) / pcie
    per_tensor = shape.tensors * assumptions.tensor_ms / 1e3
    if config.rollout.tensor_parallel_size == 1 and not moved.network:
        model_parallel = layout.tensor * layout.pipeline > 1 or layout.expert > 1
        size = shape.parameters * layout.itemsize
        return written + (size / (assumptions.nvlink_gb_s * 1e9) if model_parallel else 0.0) + per_tensor
    return max(over_network + written, engine.weights / pcie) + per_tensor


def _held(shape: ModelShape, layout: Layout, stage: int, tensor_rank: int, expert_rank: int) -> Mapping[Part, int]:
    """Bytes of the parts of a rank; ranks that hold the same weights name them alike."""
    held: dict[Part, int] = {}
    for chunk in range(layout.chunks):
        own = chunk_parameters(shape, layout, stage, chunk)
        for name, count in (
            (f"stage {stage}, chunk {chunk}, tensor rank {tensor_rank}", sum(own.dense)),
            (f"stage {stage}, chunk {chunk}, expert rank {expert_rank}", sum(own.experts)),
            (f"tied embedding, tensor rank {tensor_rank}", own.shared),
        ):
            size = count * layout.itemsize
            for piece in range(_PIECES if count else 0):
                held[Part(name, piece)] = size * (piece + 1) // _PIECES - size * piece // _PIECES
    return held
