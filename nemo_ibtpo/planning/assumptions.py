"""What a prediction takes for granted: an option of ``nemo-ibtpo plan`` each, and printed with every plan.

The defaults are those of an H100 SXM of 80 GB in a node of eight, with what its systems reach of the data sheet; they
are predictions' constants, not settings of a run, and so live here and not in ``conf/``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

GIB = 2**30


def _assumed(default: float, help_text: str) -> float:
    value: float = field(default=default, metadata={"help": help_text})
    return value


@dataclass(frozen=True)
class Assumptions:
    """One number each; ``help`` in the field's metadata says what it means."""

    gpu_memory_gb: float = _assumed(79.1, "memory of a GPU as CUDA shows it, in GiB")
    context_gib: float = _assumed(3.0, "a trainer's CUDA context, NCCL buffers and library workspaces, in GiB")
    engine_workspace_gib: float = _assumed(3.0, "vLLM's activations and CUDA graphs, within its share, in GiB")
    engine_context_gib: float = _assumed(1.0, "vLLM's CUDA context and NCCL buffers, beside its share, in GiB")
    engine_asleep_gib: float = _assumed(1.5, "what a sleeping vLLM keeps, its context included, in GiB")
    peak_tflops: float = _assumed(989.0, "dense bf16 peak of a GPU, in TFLOP/s")
    mfu: float = _assumed(0.35, "share of the peak in training and log-probs, communication inside a node included")
    moe_mfu: float = _assumed(0.15, "the same for a mixture of experts")
    hbm_tb_s: float = _assumed(3.35, "memory bandwidth of a GPU, in TB/s")
    hbm_efficiency: float = _assumed(0.7, "share of it that decoding reaches")
    decode_overhead_ms: float = _assumed(5.0, "scheduling, sampling and launches of a decoding step, in ms")
    nvlink_gb_s: float = _assumed(300.0, "one GPU's collectives inside a node, in GB/s")
    network_gb_s: float = _assumed(40.0, "one GPU's collectives between nodes, in GB/s")
    pcie_gb_s: float = _assumed(25.0, "copies between host and GPU, in GB/s")
    tensor_ms: float = _assumed(0.3, "time of a tensor of the refit beside its bytes, in ms")
    gpus_per_node: float = _assumed(8, "GPUs of a node")
    length_sigma: float = _assumed(0.7, "spread of the logarithm of a response's length")
    branch_share: float = _assumed(0.5, "length of a branch's continuation over that of a whole response")


def assumption_fields() -> dict[str, tuple[float, str]]:
    """Name of each assumption with its default and meaning."""
    return {entry.name: (entry.default, entry.metadata["help"]) for entry in fields(Assumptions)}  # type: ignore[misc]
