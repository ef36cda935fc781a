"""Models that NVIDIA's megatron-bridge builds (``model.provider=bridge``), with tree attention in every layer.

The library's *provider* of a model is Megatron's configuration of it, and makes its ``GPTModel``. Layers are taken as
they come but for ``core_attention``; whatever the attention over trees cannot stand in for is refused by name, so
that nothing is trained as another model than it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.megatron.tree_attention import TreeAttention

# What a provider may say of a model that attention, positions or rules here do not do; the value that says nothing.
_REFUSED: dict[str, tuple[Any, str]] = {
    "multi_latent_attention": (False, "multi-head latent attention"),
    "window_size": (None, "sliding-window attention"),
    "experimental_attention_variant": (None, "an experimental attention"),
    "linear_attention_type": (None, "linear attention"),
    "softmax_type": ("vanilla", "a softmax with sinks"),
    "rotary_interleaved": (False, "interleaved rotary positions"),
    "num_moe_experts": (None, "experts"),
    "mtp_num_layers": (None, "layers that predict several tokens"),
    "heterogeneous_block_specs": (False, "layers of several kinds"),
    "position_embedding_type": ("rope", "positions of another kind"),
}
# Layers may share one specification, which then has been given ours already.
_STANDARD_ATTENTION = ("DotProductAttention", "TEDotProductAttention", TreeAttention.__name__)


def refuse_unusual(provider: Any) -> None:
    """Refuse a model whose attention is not standard, or that asks for what is not done here.

    Raises:
        UserError: says what it asks for.
    """
    for name, (plain, meaning) in _REFUSED.items():
        value = getattr(provider, name, plain)
        if value != plain:
            raise UserError(
                f"model.provider=bridge: the model has {meaning} ({name}={value}), which is not supported"
            )
    if not isinstance(provider, TransformerConfig) or not hasattr(provider, "provide"):
        raise UserError(f"model.provider=bridge: {type(provider).__name__} is no provider of a GPTModel")


def transformer_config(provider: Any, layout: Mapping[str, Any]) -> TransformerConfig:
    """The provider with the actor's layout, and with tree attention in its layers.

    Raises:
        UserError: a layer's attention is not standard.
    """
    for name, value in layout.items():
        setattr(provider, name, value)
    provider.parallel_output = True
    provider.position_embedding_type = "mrope"  # hands the depths on (:mod:`.rotary`)
    provider.apply_rope_fusion = provider.bias_activation_fusion = False
    provider.attention_backend = AttnBackend.auto  # it would put another attention in place of ours
    provider.should_pad_vocab = False
    provider.finalize()
    given = provider.transformer_layer_spec
    provider.transformer_layer_spec = lambda config, vp_stage=None: _with_tree_attention(given, config, vp_stage)
    config: TransformerConfig = provider
    return config


def build_chunk(
    provider: Any, vocab_size: int, *, pre_process: bool, post_process: bool, vp_stage: int | None
) -> GPTModel:
    """A model chunk, weights not yet loaded; its positions are still to be replaced.

    Args:
        provider: as :func:`transformer_config` returned it.
        vocab_size: rows of the embedding over all tensor-parallel ranks.
    """
    provider.vocab_size = vocab_size
    provider._pg_collection = ProcessGroupCollection.use_mpu_process_groups()
    model: GPTModel = provider.provide(pre_process=pre_process, post_process=post_process, vp_stage=vp_stage)
    return model


def _with_tree_attention(given: Any, config: Any, vp_stage: int | None) -> Any:
    spec = given
    if not hasattr(given, "submodules") and callable(given):
        staged = "vp_stage" in inspect.signature(given).parameters
        spec = given(config, vp_stage=vp_stage) if staged else given(config)
    for layer in getattr(spec, "layer_specs", [spec]):
        attention = layer.submodules.self_attention
        core = getattr(attention.submodules, "core_attention", None)
        if attention.module is not SelfAttention or getattr(core, "__name__", None) not in _STANDARD_ATTENTION:
            found = getattr(attention.module, "__name__", "?"), getattr(core, "__name__", "?")
            raise UserError(
                f"model.provider=bridge: attention {found[0]} with {found[1]} is not standard, and is not supported"
            )
        attention.submodules.core_attention = TreeAttention
    return spec
