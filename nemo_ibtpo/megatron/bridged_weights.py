"""What megatron-bridge knows of a model's weights, as the rules of :mod:`.weights`.

The library lists, for a family, which Hugging Face tensors make up each Megatron parameter (its *mapping registry*).
Each entry that merely lays tensors out becomes a rule, so that loading, exporting and the way to the engines are as
for all models. An entry that computes something is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.rope import rope_parameters
from nemo_ibtpo.megatron.architecture import Architecture, Bridge, load_config, rotary
from nemo_ibtpo.megatron.bridged import refuse_unusual
from nemo_ibtpo.megatron.weights import (
    Rule,
    gate_and_up,
    global_name,
    input_columns,
    output_rows,
    query_key_value,
    replicated,
    vocab_rows,
)

_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
_OF_HEADS = re.compile(r".*\.self_attention\.[qk]_layernorm\.(weight|bias)")
_OF_HIDDEN = re.compile(r".*(_layernorm\.(weight|bias)|\.linear_proj\.bias|\.linear_fc2\.bias)")
_PLAIN = ("AutoMapping", "ColumnParallelMapping", "ReplicatedMapping", "RowParallelMapping")


def load_bridged(model_path: Path, names: Iterable[str]) -> Architecture:
    """Ask megatron-bridge how a Hugging Face model is built and laid out.

    Args:
        model_path: directory with its ``config.json``.
        names: of its weights, since the library lists more than any one model of a family has.

    Raises:
        UserError: the library cannot be imported, does not know the model, or knows it to be one that the actor
            cannot train.
    """
    config = load_config(model_path)
    try:
        from megatron.bridge import AutoBridge
    except ImportError as error:
        raise UserError(f"model.provider=bridge: megatron.bridge cannot be imported: {error}") from error
    try:
        bridge = AutoBridge.from_hf_config(config)
        provider = bridge.to_megatron_provider(load_weights=False)
        mappings = bridge._model_bridge.mapping_registry().get_all_mappings()
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{model_path}: megatron-bridge does not take this model: {reason}") from error
    refuse_unusual(provider)
    architecture = _architecture(provider, config)
    rules = bridged_rules(mappings, architecture, provider.gated_linear_unit, set(names))
    return replace(architecture, bridge=Bridge(provider, rules))


def bridged_rules(mappings: Iterable[Any], arch: Architecture, gated: bool, found: set[str]) -> dict[str, Rule]:
    """The rules of the parameters whose tensors are there, by global Megatron name.

    Args:
        mappings: of the library's registry, which lists more than any one model of a family has.
        gated: whether the MLP has a gate, which Megatron keeps in one matrix with the up projection.
        found: names of the Hugging Face tensors.

    Raises:
        UserError: a mapping computes something, or is of a parameter that no rule is known for.
    """
    rules: dict[str, Rule] = {}
    for mapping in mappings:
        theirs = mapping.hf_param if isinstance(mapping.hf_param, Mapping) else {"": mapping.hf_param}
        layers = range(arch.num_layers) if "*" in mapping.megatron_param else range(1)
        for layer in layers:
            names = {part: name.replace("*", str(layer)) for part, name in theirs.items()}
            ours = global_name(mapping.megatron_param.replace("*", str(layer)), range(1, arch.num_layers + 1))
            tied = arch.tied_embeddings and ours == "output_layer.weight"
            if ours not in rules and not tied and found.issuperset(names.values()):
                rules[ours] = _rule(mapping, ours, names, arch, gated)
    return rules


def _rule(mapping: Any, ours: str, names: dict[str, str], arch: Architecture, gated: bool) -> Rule:
    kind, hidden, ffn = type(mapping).__name__, arch.hidden_size, arch.ffn_hidden_size
    if kind == "QKVMapping":
        return query_key_value([names[part] for part in "qkv"], arch)
    if kind == "GatedMLPMapping" and ours.endswith(".linear_fc1.weight"):
        return gate_and_up(names["gate"], names["up"], ffn, hidden)
    if kind in _PLAIN:
        (name,) = names.values()
        if ours in _VOCABULARY:
            return vocab_rows(name, arch.vocab_size, hidden)
        if ours.endswith(".self_attention.linear_proj.weight"):
            return input_columns(name, hidden, arch.num_attention_heads * arch.head_dim)
        if ours.endswith(".mlp.linear_fc2.weight"):
            return input_columns(name, hidden, ffn)
        if ours.endswith(".mlp.linear_fc1.weight") and not gated:
            return output_rows(name, ffn, hidden)
        if ours.endswith(".mlp.linear_fc1.bias") and not gated:
            return output_rows(name, ffn)
        if _OF_HEADS.fullmatch(ours):
            return replicated(name, arch.head_dim)
        if _OF_HIDDEN.fullmatch(ours):
            return replicated(name, hidden)
    raise UserError(f"model.provider=bridge: no rule is known for {ours} ({kind} of {', '.join(names.values())})")


def _architecture(provider: Any, config: PretrainedConfig) -> Architecture:
    heads, hidden = provider.num_attention_heads, provider.hidden_size
    head_dim = provider.kv_channels or hidden // heads
    rotated = rope_parameters(config.to_dict()).get("partial_rotary_factor", 1.0)
    inv_freq, rotary_scale = rotary(config, int(head_dim * rotated), max_model_len=1)
    return Architecture(
        vocab_size=provider.vocab_size,
        hidden_size=hidden,
        ffn_hidden_size=provider.ffn_hidden_size,
        num_layers=provider.num_layers,
        num_attention_heads=heads,
        num_query_groups=provider.num_query_groups or heads,
        head_dim=head_dim,
        norm_eps=provider.layernorm_epsilon,
        max_position_embeddings=config.max_position_embeddings,
        qkv_bias=provider.add_qkv_bias,
        qk_norm=provider.qk_layernorm,
        tied_embeddings=provider.share_embeddings_and_output_weights,
        inv_freq=inv_freq,
        rotary_scale=rotary_scale,
        experts=None,
    )
