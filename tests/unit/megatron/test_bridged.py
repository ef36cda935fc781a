"""What ``model.provider=bridge`` makes of a provider and of a registry of weights.

Why it matters: a model whose attention is quietly replaced by another one, or whose weights are laid out wrongly,
trains without an error. The layers here are Megatron's own. megatron-bridge itself is not exercised, which does not
import without Transformer Engine: the entries of a registry stand here as what it documents of them, and
``tests/gpu/test_megatron_bridge_gpu.py`` takes those of the library.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bridge_stand_in import OURS, REGISTRY, AutoMapping, RMSNorm2ZeroCenteredRMSNormMapping
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from toy_models import config_of

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.megatron.bridged import _with_tree_attention, refuse_unusual
from nemo_ibtpo.megatron.bridged_weights import bridged_rules
from nemo_ibtpo.megatron.tree_attention import TreeAttention
from nemo_ibtpo.megatron.weights import rules

SIZES: dict[str, Any] = {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        (MLATransformerConfig(**SIZES), "multi-head latent attention (multi_latent_attention=True)"),
        (TransformerConfig(**SIZES, window_size=(128, 0)), "sliding-window attention (window_size=(128, 0))"),
        (TransformerConfig(**SIZES, num_moe_experts=4), "experts (num_moe_experts=4)"),
        (TransformerConfig(**SIZES, rotary_interleaved=True), "interleaved rotary positions"),
        (SimpleNamespace(position_embedding_type="yarn"), "positions of another kind (position_embedding_type=yarn)"),
        (TransformerConfig(**SIZES), "TransformerConfig is no provider of a GPTModel"),
    ],
)
def test_providers_that_are_refused(provider: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse_unusual(provider)
    assert message in str(caught.value)


def test_tree_attention_takes_the_place_of_the_standard_one() -> None:
    spec = _with_tree_attention(lambda config: get_gpt_layer_local_spec(), None, None)
    block = SimpleNamespace(layer_specs=[spec, spec])  # layers may share one specification
    assert _with_tree_attention(lambda config, vp_stage: block, None, None) is block
    assert spec.submodules.self_attention.submodules.core_attention is TreeAttention
    with pytest.raises(UserError, match=r"attention MLASelfAttention with .* is not standard"):
        _with_tree_attention(get_gpt_layer_local_spec(multi_latent_attention=True), None, None)
    spec.submodules.self_attention.submodules.core_attention = torch.nn.Identity
    with pytest.raises(UserError, match=r"attention SelfAttention with Identity is not standard"):
        _with_tree_attention(spec, None, None)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_registry_becomes_the_rules_that_we_know(family: str) -> None:
    arch = architecture_from_config(config_of(family))
    ours = rules(arch)
    shapes = {name: shape for rule in ours.values() for name, shape in rule.shapes.items()}
    found = bridged_rules(REGISTRY, arch, gated=True, found=set(shapes))
    assert found.keys() == ours.keys()
    for name, rule in found.items():
        full = [torch.randn(shape) for shape in rule.shapes.values()]
        assert list(rule.shapes.items()) == list(ours[name].shapes.items())  # in the same order
        assert all(torch.equal(rule.cut(full, rank, 2), ours[name].cut(full, rank, 2)) for rank in range(2))


def test_an_mlp_without_a_gate() -> None:
    arch = replace(architecture_from_config(config_of("llama")), hidden_size=3, ffn_hidden_size=4, num_layers=1)
    entry = AutoMapping(f"{OURS}.mlp.linear_fc1.weight", "up")
    (rule,) = bridged_rules([entry], arch, gated=False, found={"up"}).values()
    full = torch.arange(12.0).view(4, 3)
    assert torch.equal(rule.cut([full], 1, 2), full[2:])
    assert torch.equal(rule.merge([full[:2], full[2:]])[0], full)


@pytest.mark.parametrize(
    "entry",
    [
        RMSNorm2ZeroCenteredRMSNormMapping("decoder.final_layernorm.weight", "model.norm.weight"),  # subtracts 1
        AutoMapping(f"{OURS}.mlp.linear_fc1.weight", "model.norm.weight"),  # two matrices in one
        AutoMapping("decoder.extra.weight", "model.norm.weight"),
    ],
)
def test_entries_that_are_refused(entry: AutoMapping) -> None:
    arch = architecture_from_config(config_of("llama"))
    with pytest.raises(UserError, match=r"no rule is known for decoder\..* \(.*Mapping of model.norm.weight\)"):
        bridged_rules([entry], arch, gated=True, found={"model.norm.weight"})
