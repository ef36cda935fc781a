"""Which decoders the actor builds, from the values of their ``config.json``, and how their weights are called.

Needs no torch: the checks before a run and the reader of architectures ask here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_ibtpo.config.rope import rope_parameters, unsupported_rope

# Buffers that early checkpoints of Llama keep among the weights; they follow from config.json.
IGNORED_WEIGHTS = (".rotary_emb.inv_freq",)


def unsupported(config: Mapping[str, Any]) -> str | None:
    """The first thing a configuration asks for that the actor does not build; None if there is none."""
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name) is True:
            return f"{name}=true is not supported"
    if (activation := config.get("hidden_act") or "silu") != "silu":
        return f"hidden_act '{activation}' is not supported, only 'silu'"
    if (reason := _other_layers(config)) is not None:
        return reason
    if (reason := unsupported_rope(config)) is not None:
        return reason
    step = config.get("decoder_sparse_step", 1)
    if config.get("mlp_only_layers") or step != 1:
        return (
            "dense layers among those with experts are not supported (mlp_only_layers="
            f"{config.get('mlp_only_layers')}, decoder_sparse_step={step})"
        )
    return None


def _other_layers(config: Mapping[str, Any]) -> str | None:
    """What kind of layer there is besides full attention."""
    others = sorted({str(kind) for kind in config.get("layer_types") or []} - {"full_attention"})
    return f"layers with {others[0]} are not supported (layer_types); only full_attention is" if others else None


_ROPE_THROUGH_BRIDGE = ("default", "linear", "llama3")
# Keys of a config.json that name another attention than the standard one, and what it is.
_OTHER_ATTENTION = {
    "kv_lora_rank": "multi-head latent attention",
    "q_lora_rank": "multi-head latent attention",
    "linear_num_key_heads": "linear attention",
    "linear_attn_config": "linear attention",
    "hybrid_override_pattern": "state-space layers",
    "mamba_num_heads": "state-space layers",
    "ssm_cfg": "state-space layers",
    "attn_logit_softcapping": "attention with capped logits",
    "attention_chunk_size": "attention in chunks",
    "block_configs": "layers of several kinds",
    "num_experts": "experts",
    "num_local_experts": "experts",
    "n_routed_experts": "experts",
}


def unsupported_through_bridge(config: Mapping[str, Any]) -> str | None:
    """The first thing that stands in the way of tree attention in a model that megatron-bridge builds; else None."""
    for name, meaning in _OTHER_ATTENTION.items():
        if config.get(name):
            return f"{meaning} ({name}) is not supported, only standard attention in dense decoders"
    if (reason := _other_layers(config)) is not None:
        return reason
    if config.get("sliding_window") is not None and config.get("use_sliding_window", True):
        return (
            f"sliding-window attention is not supported (sliding_window is {config['sliding_window']}); set it to "
            "null if full attention is right for this model"
        )
    if (kind := rope_parameters(config)["rope_type"]) not in _ROPE_THROUGH_BRIDGE:
        return f"rope_type '{kind}' is not supported; supported are {', '.join(_ROPE_THROUGH_BRIDGE)}"
    # A part of the channels may be left as they are, where positions are not scaled.
    return None if kind == "default" else unsupported_rope(config)


def weight_names(config: Mapping[str, Any]) -> set[str]:
    """Names of the weights of a Hugging Face model; of a tied one without ``lm_head.weight``.

    Args:
        config: values of ``config.json``, with ``num_experts`` (null for a dense model) and ``num_hidden_layers``.
    """
    family = config["architectures"][0]
    projections = [f"self_attn.{part}_proj" for part in "qkv"]
    layer = [f"{name}.weight" for name in (*projections, "self_attn.o_proj")]
    layer += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    if family == "Qwen2ForCausalLM":
        layer += [f"{name}.bias" for name in projections]
    if family.startswith("Qwen3"):
        layer += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
    mlp = [f"{part}_proj.weight" for part in ("gate", "up", "down")]
    if config["num_experts"] is None:
        layer += [f"mlp.{name}" for name in mlp]
    else:
        layer += ["mlp.gate.weight"]
        layer += [f"mlp.experts.{number}.{name}" for number in range(config["num_experts"]) for name in mlp]
    names = {f"model.layers.{number}.{name}" for number in range(config["num_hidden_layers"]) for name in layer}
    names |= {"model.embed_tokens.weight", "model.norm.weight"}
    return names if config.get("tie_word_embeddings") else names | {"lm_head.weight"}
