"""What is true of vLLM 0.32 and may not be of the next version: all that is used beyond its documented interface.

``make test-vllm-next`` runs the tests of the engine with the following minor version. Nothing here imports vLLM
before it is called, since owners of an engine do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from nemo_ibtpo.config.rope import at_length, rope_parameters

# Its attention on a CPU takes heads of these sizes, and shares prefixes in blocks of no fewer tokens.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
CPU_BLOCK_TOKENS = 32

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the process is the engine's; it needs no other
    "VLLM_NO_USAGE_STATS": "1",
}
CPU_SETTINGS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # OMP_NUM_THREADS rules; engines beside each other would share cores
    "TORCHDYNAMO_DISABLE": "1",  # it compiles a helper of its sampler, which takes longer than a small run
}


def rotary_overrides(model_path: Path, max_model_len: int) -> dict[str, Any]:
    """What vLLM is to read instead of ``config.json`` so that it rotates as the actor does (``config.rope``).

    By itself it does not scale ``dynamic`` positions, refuses lengths that ``yarn`` reaches where
    ``max_position_embeddings`` is that of training, and works out the attention factor of ``longrope`` from
    ``max_position_embeddings``, whatever the configuration says.
    """
    values = AutoConfig.from_pretrained(str(model_path), local_files_only=True).to_dict()
    overrides = at_length(values, max_model_len)
    rope = rope_parameters(values | overrides)
    if rope["rope_type"] == "longrope":
        scale = rope["attention_factor"]
        overrides["rope_parameters"] = rope | {"short_mscale": scale, "long_mscale": scale}
    return overrides


class LayerwiseLoader:
    """vLLM's own loading of new weights into a model in use, layer by layer as they arrive.

    Args:
        model: vLLM's.
        model_config: vLLM's.
    """

    def __init__(self, model: nn.Module, model_config: Any) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._model, self._model_config = model, model_config
        initialize_layerwise_reload(model)

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load some weights; memory of a layer's is read until all of the layer have been loaded."""
        self._model.load_weights(weights)  # type: ignore[operator]

    def finish(self) -> None:
        """After the last weights."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self._model, self._model_config)


def renew_tied_head(model: nn.Module) -> None:
    """After new weights: an output layer that is tied to the embedding follows it on a CPU.

    vLLM packs both for the CPU's matrix products and forgets the output layer's, which would stay what it was.
    """
    if hasattr(model.lm_head, "cpu_linear"):
        model.lm_head.cpu_linear = model.model.embed_tokens.cpu_linear  # type: ignore[union-attr]


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer without quantization."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    return isinstance(getattr(module, "quant_method", None), UnquantizedLinearMethod)


def is_embedding(module: nn.Module) -> bool:
    """Whether it is an embedding or output layer without quantization."""
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    return isinstance(getattr(module, "quant_method", None), UnquantizedEmbeddingMethod)


def is_experts(module: nn.Module) -> bool:
    """Whether it is the experts of a layer, stacked, without quantization."""
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    return isinstance(getattr(module, "quant_method", None), UnquantizedFusedMoEMethod)


def pack_linear(module: nn.Module, weight: torch.Tensor | None) -> None:
    """Make the form that the CPU's kernels read of a weight; None packs the parameter that is there."""
    module.cpu_linear = None  # type: ignore[assignment]  # its memory is taken for the new one
    if weight is not None:
        module.weight = nn.Parameter(weight, requires_grad=False)
    module.quant_method.process_weights_after_loading(module)  # type: ignore[union-attr,operator]


def pack_experts(experts: Any, gate_and_up: torch.Tensor, down: torch.Tensor) -> None:
    """The same for the stacked experts of a layer, which vLLM packs at the first loading only.

    Args:
        experts: vLLM's layer.
        gate_and_up: [experts, 2 x channels, hidden].
        down: [experts, hidden, channels].
    """
    experts.w13_weight = nn.Parameter(gate_and_up, requires_grad=False)
    experts.w2_weight = nn.Parameter(down, requires_grad=False)
    experts.quant_method.moe_kernel.fused_experts.process_weights_after_loading(experts)
