"""What megatron-bridge documents of its registries of weights, for tests where it cannot be imported.

Nothing here is the library: its entries, its providers of a model and the way to them are written down as they are
documented. ``tests/gpu/test_megatron_bridge_gpu.py`` takes the library's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.activations import squared_relu
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import NemotronConfig, PreTrainedConfig


@dataclass
class AutoMapping:
    megatron_param: str
    hf_param: Any


class QKVMapping(AutoMapping): ...


class GatedMLPMapping(AutoMapping): ...


class RMSNorm2ZeroCenteredRMSNormMapping(AutoMapping): ...


OURS, THEIRS = "decoder.layers.*", "model.layers.*"
_COMMON = [
    AutoMapping("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
    AutoMapping("output_layer.weight", "lm_head.weight"),
    AutoMapping("decoder.final_layernorm.weight", "model.norm.weight"),
    AutoMapping(f"{OURS}.self_attention.linear_qkv.layer_norm_weight", f"{THEIRS}.input_layernorm.weight"),
    AutoMapping(f"{OURS}.mlp.linear_fc1.layer_norm_weight", f"{THEIRS}.post_attention_layernorm.weight"),
    AutoMapping(f"{OURS}.self_attention.linear_proj.weight", f"{THEIRS}.self_attn.o_proj.weight"),
    AutoMapping(f"{OURS}.mlp.linear_fc2.weight", f"{THEIRS}.mlp.down_proj.weight"),
    *(
        QKVMapping(
            f"{OURS}.self_attention.linear_qkv.{kind}", {p: f"{THEIRS}.self_attn.{p}_proj.{kind}" for p in "qkv"}
        )
        for kind in ("weight", "bias")
    ),
]
REGISTRY = [
    *_COMMON,
    AutoMapping(f"{OURS}.self_attention.q_layernorm.weight", f"{THEIRS}.self_attn.q_norm.weight"),
    AutoMapping(f"{OURS}.self_attention.k_layernorm.weight", f"{THEIRS}.self_attn.k_norm.weight"),
    GatedMLPMapping(f"{OURS}.mlp.linear_fc1.weight", {p: f"{THEIRS}.mlp.{p}_proj.weight" for p in ("gate", "up")}),
]
NEMOTRON = [
    *_COMMON,
    AutoMapping("decoder.final_layernorm.bias", "model.norm.bias"),
    AutoMapping(f"{OURS}.self_attention.linear_qkv.layer_norm_bias", f"{THEIRS}.input_layernorm.bias"),
    AutoMapping(f"{OURS}.mlp.linear_fc1.layer_norm_bias", f"{THEIRS}.post_attention_layernorm.bias"),
    AutoMapping(f"{OURS}.mlp.linear_fc1.weight", f"{THEIRS}.mlp.up_proj.weight"),
]


def nemotron_config() -> NemotronConfig:
    """A tiny model of a family that this package does not know: norms with biases, an MLP without a gate."""
    return NemotronConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
    )


@dataclass
class Provider(TransformerConfig):
    """A provider of a model of Megatron's own layers."""

    vocab_size: int = 0
    share_embeddings_and_output_weights: bool = False
    position_embedding_type: str = "rope"
    transformer_layer_spec: Callable[..., Any] | None = None

    def finalize(self) -> None:
        """Nothing is left to be worked out."""

    def provide(self, **ends: Any) -> GPTModel:
        """The model, or a stage's chunk of it."""
        assert self.transformer_layer_spec is not None
        return GPTModel(
            self,
            self.transformer_layer_spec(self, vp_stage=None),
            self.vocab_size,
            max_sequence_length=256,
            parallel_output=True,
            share_embeddings_and_output_weights=self.share_embeddings_and_output_weights,
            position_embedding_type=self.position_embedding_type,
            **ends,
        )


def _provider(config: PreTrainedConfig) -> Provider:
    nemotron, qk_norm = config.model_type == "nemotron", config.model_type == "qwen3"
    normalization = "LayerNorm" if nemotron else "RMSNorm"
    return Provider(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads,
        kv_channels=config.head_dim,
        normalization=normalization,
        gated_linear_unit=not nemotron,
        activation_func=squared_relu if nemotron else torch.nn.functional.silu,
        add_bias_linear=False,
        qk_layernorm=qk_norm,
        persist_layer_norm=False,
        vocab_size=config.vocab_size,
        share_embeddings_and_output_weights=config.tie_word_embeddings,
        transformer_layer_spec=lambda _: get_gpt_layer_local_spec(qk_layernorm=qk_norm, normalization=normalization),
    )


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in where ``megatron.bridge`` is imported from."""

    def from_hf_config(config: PreTrainedConfig) -> Any:
        entries = NEMOTRON if config.model_type == "nemotron" else REGISTRY
        return SimpleNamespace(
            to_megatron_provider=lambda load_weights: _provider(config),
            _model_bridge=SimpleNamespace(mapping_registry=lambda: SimpleNamespace(get_all_mappings=lambda: entries)),
        )

    stand_in = SimpleNamespace(AutoBridge=SimpleNamespace(from_hf_config=from_hf_config))
    monkeypatch.setitem(sys.modules, "megatron.bridge", stand_in)  # type: ignore[arg-type]
