"""A transformer layer of Megatron-Core's own modules, with tree attention: what runs without Transformer Engine."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from nemo_ibtpo.megatron.architecture import Architecture
from nemo_ibtpo.megatron.compat import with_router
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


class Float32Router(TopKRouter):
    """Megatron's router with its logits in float32.

    Megatron-Core 0.16 reaches for Transformer Engine there, also where it is not installed, and compiles what updates
    the bias that some routers have, which cannot be done within :func:`nemo_ibtpo.megatron.cpu.cuda_on_cpu`.
    """

    def gating(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [T, 1, experts] float32 of ``hidden`` [T, 1, hidden_size]."""
        return torch.nn.functional.linear(hidden.float(), self.weight.float())

    def _apply_expert_bias(self, *_: Any, **__: Any) -> None:
        """No router here has a bias."""


def local_layer_spec(architecture: Architecture) -> ModuleSpec:
    """The specification of one layer of ``architecture``."""
    backend = LocalSpecProvider()
    experts = architecture.experts.number if architecture.experts else None
    mlp = get_mlp_module_spec_for_backend(backend=backend, num_experts=experts)
    norm_of_heads = RMSNorm if architecture.qk_norm else IdentityOp
    # Transformer Engine fuses each norm into the linear layer behind it, though not the norm before experts.
    # Checkpoints have the names that it gives, so that one written with it can be read without it.
    names = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if experts is None:
        names["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=backend.column_parallel_linear(),
                    core_attention=TreeAttention,
                    linear_proj=backend.row_parallel_linear(),
                    q_layernorm=norm_of_heads,
                    k_layernorm=norm_of_heads,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=mlp if experts is None else with_router(mlp, Float32Router),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=names,
        ),
    )
