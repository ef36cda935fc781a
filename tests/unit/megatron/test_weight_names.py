"""Parameter names of Megatron's layers and of Transformer Engine's lead to the same Hugging Face weights.

Why it matters: with Transformer Engine a norm is part of the linear layer behind it and goes by another name; a norm
that is not found would keep its initial ones.

Names alone are tested, spelled out as each kind of layer has them, for the second chunk of a pipeline. That
weights arrive bitwise is tests/distributed/test_parity.py, with Megatron's layers; Transformer Engine needs a GPU.
"""

from __future__ import annotations

import pytest
from toy_models import config_of

from nemo_ibtpo.config.supported import weight_names
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.megatron.weights import global_name, rules

LINEAR = [
    "self_attention.linear_qkv.weight",
    "self_attention.linear_proj.weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
]
NORMS = {
    "megatron": ["input_layernorm.weight", "pre_mlp_layernorm.weight"],
    "transformer engine": ["self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight"],
}
OF_FAMILY = {
    "llama": [],
    "qwen2": ["self_attention.linear_qkv.bias"],
    "mistral": [],
    "qwen3": ["self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight"],
}


@pytest.mark.parametrize("layers", NORMS)
@pytest.mark.parametrize("family", OF_FAMILY)
def test_every_parameter_of_a_layer_has_its_rule(family: str, layers: str) -> None:
    table = rules(architecture_from_config(config_of(family)))
    local = [f"decoder.layers.1.{name}" for name in LINEAR + NORMS[layers] + OF_FAMILY[family]]
    names = {global_name(name, [3, 4]) for name in local}
    assert names == {name for name in table if name.startswith("decoder.layers.3.")}


def test_fused_norms_are_the_norms_before_their_layers() -> None:
    table = rules(architecture_from_config(config_of("qwen3")))
    before_attention, before_mlp = (
        table[global_name(f"decoder.layers.0.{name}", [1])].shapes for name in NORMS["transformer engine"]
    )
    assert list(before_attention) == ["model.layers.0.input_layernorm.weight"]
    assert list(before_mlp) == ["model.layers.0.post_attention_layernorm.weight"]


@pytest.mark.parametrize(
    "mine", ["local_experts.{}.linear_fc1.weight", "linear_fc1.weight{}"], ids=["megatron", "transformer engine"]
)
def test_experts_are_numbered_over_all_ranks(mine: str) -> None:
    table = rules(architecture_from_config(config_of("qwen3_moe")))
    # The second of two ranks holds experts 2 and 3 of 4.
    name = global_name(f"decoder.layers.0.mlp.experts.{mine.format(1)}", [3], first_expert=2)
    assert table[name].expert == 3
    assert list(table[name].shapes) == [f"model.layers.2.mlp.experts.3.{half}_proj.weight" for half in ("gate", "up")]


def test_names_outside_layers_stay() -> None:
    for name in ("embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "output_layer.weight"):
        assert global_name(name, [1]) == name


@pytest.mark.parametrize("family", [*OF_FAMILY, "qwen3_moe"])
def test_the_check_before_a_run_wants_the_weights_that_the_rules_read(family: str) -> None:
    config = config_of(family)
    values = config.to_dict() | {"num_experts": getattr(config, "num_experts", None)}
    values["architectures"] = [type(config).__name__.replace("Config", "ForCausalLM")]
    read = {name for rule in rules(architecture_from_config(config)).values() for name in rule.shapes}
    assert weight_names(values) == read
