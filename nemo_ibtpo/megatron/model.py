"""Megatron-Core's GPTModel for a Hugging Face architecture, with tree attention and rotary positions by depth."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.extensions.transformer_engine import HAVE_TE, TENorm
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.megatron.architecture import Architecture
from nemo_ibtpo.megatron.rotary import DepthRotaryEmbedding
from nemo_ibtpo.megatron.tree_attention import TreeAttention


class RMSNorm(torch.nn.Module):
    """Root mean square norm that also works on sequence-parallel shards.

    Megatron's local wrapper of torch's norm refuses sequence parallelism; all that is needed is to mark the
    weight, so that its gradient is summed over the tensor-parallel ranks, each of which sees other tokens.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


def padded_vocab_size(vocab_size: int, tensor_parallel_size: int) -> int:
    """The smallest multiple of the tensor-parallel size that holds the vocabulary."""
    return -(-vocab_size // tensor_parallel_size) * tensor_parallel_size


def transformer_config(
    architecture: Architecture, actor: ActorConfig, dtype: torch.dtype, device: torch.device
) -> TransformerConfig:
    """Megatron's configuration of the architecture under the actor's parallel layout."""
    on_gpu = device.type == "cuda"
    interleaved = actor.virtual_pipeline_model_parallel_size is not None
    recompute: dict[str, dict[str, Any]] = {
        "none": {},
        "selective": {"recompute_granularity": "selective"},
        "full": {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        },
    }
    return TransformerConfig(
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.ffn_hidden_size,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_query_groups,
        kv_channels=architecture.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=architecture.norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=architecture.qkv_bias,
        qk_layernorm=architecture.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        mrope_section=[architecture.head_dim // 2],  # asked for by the interface, not used
        tensor_model_parallel_size=actor.tensor_model_parallel_size,
        pipeline_model_parallel_size=actor.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=actor.virtual_pipeline_model_parallel_size,
        # An interleaved pipeline is a ring. With two stages a batched exchange would carry two messages between the
        # same two ranks, which they would match in different order; one at a time they cannot be mistaken.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        sequence_parallel=actor.sequence_parallel,
        # Micro-batches of trees differ in length; stages tell each other the shape first.
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # Megatron asks for it with variable lengths, experts or not
        # With the loss already divided by the global denominator, gradients are summed over ranks.
        calculate_per_token_loss=True,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        perform_initialization=False,  # weights are loaded
        use_cpu_initialization=not on_gpu,
        bias_activation_fusion=on_gpu,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        deallocate_pipeline_outputs=on_gpu,
        **recompute[actor.recompute],
    )


def build_model(architecture: Architecture, config: TransformerConfig, device: torch.device) -> list[GPTModel]:
    """This rank's model chunks, in the order of their layers, weights not yet loaded.

    There is one, unless pipelines are interleaved.
    """
    interleaved = config.virtual_pipeline_model_parallel_size
    stages: Iterable[int | None] = [None] if interleaved is None else range(interleaved)
    return [_build_chunk(architecture, config, device, stage).to(device) for stage in stages]


def _build_chunk(
    architecture: Architecture, config: TransformerConfig, device: torch.device, vp_stage: int | None
) -> GPTModel:
    layer, final_norm = _layer_spec(architecture, device)
    model = GPTModel(
        config=config,
        transformer_layer_spec=TransformerBlockSubmodules(
            layer_specs=[layer] * get_num_layers_to_build(config, vp_stage), layer_norm=final_norm
        ),
        vocab_size=padded_vocab_size(architecture.vocab_size, config.tensor_model_parallel_size),
        max_sequence_length=architecture.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        parallel_output=True,
        share_embeddings_and_output_weights=architecture.tied_embeddings,
        position_embedding_type="mrope",
        vp_stage=vp_stage,
    )
    model.rotary_pos_emb = DepthRotaryEmbedding(architecture.inv_freq)
    _mark_shards(model)
    return model


def _layer_spec(architecture: Architecture, device: torch.device) -> tuple[ModuleSpec, type]:
    """A layer with tree attention, and the norm behind the last one.

    Transformer Engine's linear layers and norms on a GPU where it is installed, Megatron's own elsewhere. The
    former cannot be run without a GPU.
    """
    if HAVE_TE and device.type == "cuda":
        layer = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=architecture.qk_norm)
        norm: type = TENorm
    else:
        layer = get_gpt_layer_local_spec(qk_layernorm=architecture.qk_norm, normalization="RMSNorm")
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = norm = RMSNorm
        if architecture.qk_norm:
            attention = layer.submodules.self_attention.submodules
            attention.q_layernorm = attention.k_layernorm = RMSNorm
    layer.submodules.self_attention.submodules.core_attention = TreeAttention
    return layer, norm


def _mark_shards(model: GPTModel) -> None:
    """Say of each sharded weight that it is one.

    Megatron-Core 0.16 does so only while it initialises weights. Without the mark a weight passes for replicated,
    and the gradient norm counts tensor-parallel rank 0's shard alone.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is None or hasattr(weight, "tensor_model_parallel"):
            continue
        if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding):
            set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=0, stride=1)
        elif isinstance(module, RowParallelLinear):
            set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=1, stride=1)
