"""What a Hugging Face configuration says about a decoder, in the terms the Megatron actor needs.

Supported: Llama 2/3.x and Mistral (no biases), Qwen2/2.5 (biases on q, k, v), Qwen3 (normalised queries and keys)
and Qwen3-MoE (experts in every layer), with tied or untied embeddings and grouped-query attention. Whatever else a
configuration asks for is refused by name; nothing is approximated.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.rope import at_length
from nemo_ibtpo.config.supported import unsupported

if TYPE_CHECKING:
    from nemo_ibtpo.megatron.weights import Rule

# Whether q, k and v have biases, and whether queries and keys are normalised.
_FAMILIES = {
    "llama": (False, False),
    "mistral": (False, False),
    "qwen2": (True, False),
    "qwen3": (False, True),
    "qwen3_moe": (False, True),
}


@dataclass(frozen=True)
class Experts:
    """The mixture of experts that takes the place of every layer's MLP.

    Attributes:
        number: experts of a layer.
        per_token: experts that a token goes to, those of highest probability.
        ffn_hidden_size: channels of one expert.
        normalize_weights: whether a token's weights, the softmax over all experts, are scaled to sum to 1.
        aux_loss_coef: the model's own coefficient of the load-balancing loss.
    """

    number: int
    per_token: int
    ffn_hidden_size: int
    normalize_weights: bool
    aux_loss_coef: float


@dataclass(frozen=True)
class Bridge:
    """What megatron-bridge says of a model (:mod:`.bridged`).

    Attributes:
        provider: its ``GPTModelProvider``, which is Megatron's configuration of the model and builds it.
        rules: how each Megatron parameter is made of Hugging Face tensors, by name.
    """

    provider: Any
    rules: Mapping[str, Rule]


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer with rotary positions, RMSNorm and SwiGLU MLPs.

    Attributes:
        vocab_size: rows of the embedding in the Hugging Face weights.
        ffn_hidden_size: channels of the MLP of a layer without experts.
        head_dim: channels of one attention head.
        qkv_bias: whether q, k and v have biases.
        qk_norm: whether queries and keys are normalised per head.
        tied_embeddings: whether the output layer is the embedding.
        inv_freq: rotary inverse frequencies [head_dim / 2], float32, scaling applied.
        rotary_scale: what the rotated queries and keys are multiplied by, each (transformers' attention factor).
        experts: None for a dense model.
        bridge: who builds the model where this package does not; None where it does.
    """

    vocab_size: int
    hidden_size: int
    ffn_hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    norm_eps: float
    max_position_embeddings: int
    qkv_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    inv_freq: torch.Tensor
    rotary_scale: float
    experts: Experts | None
    bridge: Bridge | None = None

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of a forward pass for one token, attention between tokens apart.

        2 for each weight of a matrix that the token meets: the output layer included, the embedding's look-up not,
        and of experts those that it goes to.
        """
        attention = self.hidden_size * self.head_dim * 2 * (self.num_attention_heads + self.num_query_groups)
        experts = self.experts
        channels = self.ffn_hidden_size if experts is None else experts.per_token * experts.ffn_hidden_size
        router = 0 if experts is None else self.hidden_size * experts.number
        layer = attention + 3 * self.hidden_size * channels + router
        return 2.0 * (self.num_layers * layer + self.vocab_size * self.hidden_size)

    @property
    def flops_per_pair(self) -> float:
        """Floating-point operations of a forward pass for one pair of tokens of which one attends to the other.

        4 for each channel of the queries: a product with a key and one with a value, of 2 operations each.
        """
        return 4.0 * self.num_layers * self.num_attention_heads * self.head_dim


def load_architecture(model_path: str | Path, max_model_len: int | None = None) -> Architecture:
    """Read ``config.json`` of a Hugging Face model directory; see :func:`architecture_from_config`."""
    return architecture_from_config(load_config(model_path), max_model_len)


def load_config(model_path: str | Path) -> PretrainedConfig:
    """The configuration of a Hugging Face model directory.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(str(model_path), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{model_path}: cannot read a Hugging Face config there: {reason}") from error


def architecture_from_config(config: PretrainedConfig, max_model_len: int | None = None) -> Architecture:
    """Translate a Hugging Face configuration.

    Args:
        config: the configuration.
        max_model_len: tokens of the longest sequence, which ``dynamic`` and ``longrope`` rotations depend on; None
            where none is longer than those the model was trained on, or nothing is computed.

    Raises:
        UserError: the configuration asks for something the actor does not build; it is named.
    """
    family = config.model_type
    if family not in _FAMILIES:
        raise UserError(f"model type '{family}' is not supported; supported are {', '.join(sorted(_FAMILIES))}")
    qkv_bias, qk_norm = _FAMILIES[family]
    if (reason := unsupported(config.to_dict())) is not None:
        raise UserError(f"{family}: {reason}")
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", family == "mistral"):
        raise UserError(f"{family}: sliding-window attention is not supported; set sliding_window to null")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inv_freq, rotary_scale = rotary(config, head_dim, max_model_len or 1)
    return Architecture(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads,
        head_dim=head_dim,
        norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        tied_embeddings=bool(config.tie_word_embeddings),
        inv_freq=inv_freq,
        rotary_scale=rotary_scale,
        experts=_experts(config) if family == "qwen3_moe" else None,
    )


def _experts(config: PretrainedConfig) -> Experts:
    return Experts(
        number=config.num_experts,
        per_token=config.num_experts_per_tok,
        ffn_hidden_size=config.moe_intermediate_size,
        normalize_weights=bool(config.norm_topk_prob),
        aux_loss_coef=config.router_aux_loss_coef,
    )


def rotary(config: PretrainedConfig, head_dim: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    """Inverse frequencies [head_dim / 2] and the factor of cosines and sines."""
    config = copy.deepcopy(config)
    config.update(at_length(config.to_dict(), max_model_len))
    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return 1.0 / rope["rope_theta"] ** exponents, 1.0
    inv_freq, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    return inv_freq.float(), scale
