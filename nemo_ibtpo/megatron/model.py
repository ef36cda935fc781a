"""Megatron-Core's GPTModel for a Hugging Face architecture, with tree attention and rotary positions by depth."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.extensions.transformer_engine import HAVE_TE, TENorm
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.megatron import bridged
from nemo_ibtpo.megatron.architecture import Architecture, Experts
from nemo_ibtpo.megatron.fused_accumulation import Fusion, apex_not_needed, fused_accumulation
from nemo_ibtpo.megatron.local_layers import RMSNorm, local_layer_spec
from nemo_ibtpo.megatron.rotary import DepthRotaryEmbedding
from nemo_ibtpo.megatron.tree_attention import TreeAttention


class OutputLayer(ColumnParallelLinear):
    """Megatron's output layer, handing on what it would multiply instead of the logits (:mod:`.logprobs`)."""

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        """The hidden states of the whole sequence [T, 1, hidden], whose gradient is summed over vocabulary shards."""
        if self.sequence_parallel:
            return gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True), None
        return copy_to_tensor_model_parallel_region(hidden), None


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
    layout: dict[str, Any] = {
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "mrope_section": [architecture.head_dim // 2],  # asked for by the interface, not used
        "tensor_model_parallel_size": actor.tensor_model_parallel_size,
        "pipeline_model_parallel_size": actor.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": actor.virtual_pipeline_model_parallel_size,
        "context_parallel_size": actor.context_parallel_size,
        # An interleaved pipeline is a ring. With two stages a batched exchange would carry two messages between the
        # same two ranks, which they would match in different order; one at a time they cannot be mistaken.
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        "sequence_parallel": actor.sequence_parallel,
        # Micro-batches of trees differ in length; stages tell each other the shape first.
        "variable_seq_lengths": True,
        "expert_model_parallel_size": actor.expert_model_parallel_size,
        "expert_tensor_parallel_size": 1,
        "moe_token_dispatcher_type": "alltoall",  # Megatron asks for it with variable lengths, experts or not
        # With the loss already divided by the global denominator, gradients are summed over ranks.
        "calculate_per_token_loss": True,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
        "perform_initialization": False,  # weights are loaded
        "use_cpu_initialization": not on_gpu,
        "bias_activation_fusion": on_gpu,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": fusion_of(architecture, device).on,
        "deallocate_pipeline_outputs": on_gpu,
        **recompute[actor.recompute],
    }
    if architecture.bridge is not None:
        return bridged.transformer_config(architecture.bridge.provider, layout)
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
        softmax_scale=_softmax_scale(architecture),
        add_qkv_bias=architecture.qkv_bias,
        qk_layernorm=architecture.qk_norm,
        **_experts_config(architecture.experts, grouped=_with_engine(device)),
        **layout,
    )


def fusion_of(architecture: Architecture, device: torch.device) -> Fusion:
    """Whether the model's linear layers accumulate gradients in their products, and why."""
    return fused_accumulation(device, engine_installed=HAVE_TE, bridged=architecture.bridge is not None)


def _with_engine(device: torch.device) -> bool:
    """Transformer Engine's layers are taken where they are installed, and cannot be run without a GPU."""
    return HAVE_TE and device.type == "cuda"


def _softmax_scale(architecture: Architecture) -> float | None:
    """What scores are multiplied by; None is Megatron's 1 / sqrt(head_dim).

    The scale of rotated queries and that of rotated keys meet in their products, where they are applied at once.
    """
    if architecture.rotary_scale == 1.0:
        return None
    return architecture.rotary_scale**2 / math.sqrt(architecture.head_dim)


def _experts_config(experts: Experts | None, *, grouped: bool) -> dict[str, Any]:
    """Dropless experts, routed in float32.

    Hugging Face takes the softmax over all experts, then the highest of them, and may scale these to sum to 1. With
    scaling that is the softmax over the highest logits alone, which is what Megatron does without ``pre_softmax``.
    The coefficient of the load-balancing loss is set for each optimizer step (:class:`.actor.MegatronActor`).
    """
    if experts is None:
        return {}
    return {
        "num_moe_experts": experts.number,
        "moe_router_topk": experts.per_token,
        "moe_ffn_hidden_size": experts.ffn_hidden_size,
        # The softmax of a single logit is 1: Megatron refuses it, and pre_softmax does not scale.
        "moe_router_pre_softmax": not experts.normalize_weights,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": 0.0,
        "moe_grouped_gemm": grouped,
    }


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
    ends = {
        "pre_process": parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        "post_process": parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        "vp_stage": vp_stage,
    }
    vocab_size = padded_vocab_size(architecture.vocab_size, config.tensor_model_parallel_size)
    if architecture.bridge is not None:
        model = bridged.build_chunk(config, vocab_size, **ends)
    else:
        layer, final_norm = _layer_spec(architecture, device)
        with apex_not_needed() if _with_engine(device) else contextlib.nullcontext():
            model = GPTModel(
                config=config,
                transformer_layer_spec=TransformerBlockSubmodules(
                    layer_specs=[layer] * get_num_layers_to_build(config, vp_stage), layer_norm=final_norm
                ),
                vocab_size=vocab_size,
                max_sequence_length=architecture.max_position_embeddings,
                parallel_output=True,
                share_embeddings_and_output_weights=architecture.tied_embeddings,
                position_embedding_type="mrope",
                **ends,
            )
    model.rotary_pos_emb = DepthRotaryEmbedding(architecture.inv_freq)
    if model.post_process:
        # The class alone: the weight may be the embedding's, and hooks and checkpoints know the layer by its place.
        model.output_layer.__class__ = OutputLayer
    _mark_shards(model)
    return model


def output_weight(model: GPTModel) -> torch.Tensor:
    """This rank's rows [V_padded / TP, hidden] of the output layer, on the last pipeline stage."""
    if model.share_embeddings_and_output_weights:
        weight: torch.Tensor = model.shared_embedding_or_output_weight()
        return weight
    return model.output_layer.weight


def _layer_spec(architecture: Architecture, device: torch.device) -> tuple[ModuleSpec, type]:
    """A layer with tree attention, and the norm behind the last one.

    Transformer Engine's linear layers and norms on a GPU where it is installed, Megatron's own elsewhere.
    """
    if not _with_engine(device):
        return local_layer_spec(architecture), RMSNorm
    experts = architecture.experts.number if architecture.experts else None
    layer = get_gpt_layer_with_transformer_engine_spec(
        num_experts=experts, moe_grouped_gemm=experts is not None, qk_layernorm=architecture.qk_norm
    )
    layer.submodules.self_attention.submodules.core_attention = TreeAttention
    return layer, TENorm


def _mark_shards(model: GPTModel) -> None:
    """Say of each sharded weight that it is one, and of an expert's weight that it is an expert's.

    Megatron-Core 0.16 does so only while it initialises weights. Without the mark a weight passes for replicated,
    and the gradient norm counts tensor-parallel rank 0's shard alone.

    Experts are whole, and each tensor-parallel rank sends them tokens of its own: their gradients are summed over
    the ranks that hold the same experts, tensor-parallel ones included, and belong to the norm on every rank.
    Megatron works this out only where there is more than one expert-parallel rank.
    """
    for name, parameter in model.named_parameters():
        if ".mlp.experts." in name:
            parameter.allreduce = False
            parameter.tensor_model_parallel = True
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is None or hasattr(weight, "tensor_model_parallel"):
            continue
        if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding):
            set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=0, stride=1)
        elif isinstance(module, RowParallelLinear):
            set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=1, stride=1)
