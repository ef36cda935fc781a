"""A model directory that is missing, half-copied or unsupported is refused by name before torch is loaded.

Why this matters: a torn shard shows up as an obscure error after minutes of loading, or as nonsense in training. The
directories here hold real files. Not exercised: tensors whose bytes are wrong while sizes and headers are right.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_directories import write_model_directory
from safetensors.numpy import load_file, save_file

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.model_directory import Provider, read_model_directory


def refusal(directory: Path, provider: Provider = "own") -> str:
    with pytest.raises(UserError) as caught:
        read_model_directory(str(directory), provider)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_directory(tmp_path: Path) -> None:
    config = read_model_directory(str(write_model_directory(tmp_path, num_key_value_heads=None)))
    assert config["num_key_value_heads"] == config["num_attention_heads"] == 4


def test_sharded_weights(tmp_path: Path) -> None:
    write_model_directory(tmp_path)
    shard, index = tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model.safetensors.index.json"
    (tmp_path / "model.safetensors").rename(shard)
    index.write_text(json.dumps({"weight_map": {"a": shard.name, "b": shard.name}}))
    read_model_directory(str(tmp_path))
    shutil.copy(shard, tmp_path / "model.safetensors")
    assert "holds model.safetensors and an index of other files" in refusal(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index.write_text(json.dumps({"weight_map": {"a": shard.name, "b": "model-00002-of-00002.safetensors"}}))
    assert "names 2 files, of which these are missing: model-00002-of-00002.safetensors" in refusal(tmp_path)
    index.write_text("{}")
    assert "weight_map is missing or empty" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "architecture GPT2LMHeadModel is not supported; supported are Llama",
        ),
        ({"architectures": None}, "architecture none is not supported"),
        ({"num_hidden_layers": None}, "num_hidden_layers must be a positive integer, not null"),
        ({"hidden_size": "32"}, 'hidden_size must be a positive integer, not "32"'),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key/value heads evenly"),
        ({"use_sliding_window": True, "sliding_window": 64}, "sliding-window attention is not supported"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 64}, "(sliding_window is 64)"),
        ({"architectures": ["MistralForCausalLM"]}, "(sliding_window is absent (which means 4096))"),
        (
            {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": None},
            "num_experts must be a positive integer, not null",
        ),
        (
            {
                "architectures": ["Qwen3MoeForCausalLM"],
                "num_local_experts": 4,
                "num_experts_per_tok": 8,
                "moe_intermediate_size": 16,
            },
            "num_experts_per_tok is 8, but there are 4 experts",
        ),
        ({"attention_bias": True}, "attention_bias=true is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only 'silu'"),
        (
            {"rope_scaling": {"type": "su", "factor": 2.0}},
            "rope_type 'su' is not supported; supported are default",
        ),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type 'dynamic' needs factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, "factor=0.5: it must be a number of at least 1"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "short_factor must be a list of 4 numbers",
        ),
        (
            {
                "rope_scaling": {"type": "yarn", "factor": 4.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            },
            "rope_type is yarn in the spelling of transformers 4 (rope_scaling, rope_theta), default in that of",
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "for each kind of layer (full_attention)"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported, only 1"),
        ({"layer_types": ["full_attention", "sliding_attention"] * 2}, "layers with sliding_attention are not supp"),
        ({"vocab_size": 11}, "has token ids up to 11, but the model embeds only 11"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(write_model_directory(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 4096}, "sliding-window attention is not supported (sliding_window is 4096)"),
        (
            {"layer_types": ["full_attention", "linear_attention"] * 2},
            "layers with linear_attention are not supported",
        ),
        ({"kv_lora_rank": 512}, "multi-head latent attention (kv_lora_rank) is not supported"),
        ({"linear_num_key_heads": 16}, "linear attention (linear_num_key_heads) is not supported"),
        ({"hybrid_override_pattern": "M*M*"}, "state-space layers (hybrid_override_pattern) is not supported"),
        ({"attn_logit_softcapping": 50.0}, "attention with capped logits (attn_logit_softcapping)"),
        ({"attention_chunk_size": 8192}, "attention in chunks (attention_chunk_size)"),
        ({"n_routed_experts": 64}, "experts (n_routed_experts) is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not supported"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key/value heads evenly"),
    ],
)
def test_what_tree_attention_cannot_take_over(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """``model.provider=bridge``: families that this package does not know, unless their attention is another one."""
    directory = write_model_directory(tmp_path, **{"architectures": ["NemotronForCausalLM"]} | changes)
    assert message in refusal(directory, "bridge")


def test_a_family_that_only_the_bridge_knows(tmp_path: Path) -> None:
    directory = write_model_directory(tmp_path, architectures=["NemotronForCausalLM"], hidden_act="relu2")
    assert "and more with model.provider=bridge" in refusal(directory)
    assert read_model_directory(str(directory), "bridge")["num_experts"] is None


def test_sliding_windows_that_are_switched_off(tmp_path: Path) -> None:
    read_model_directory(str(write_model_directory(tmp_path, use_sliding_window=False, sliding_window=64)))
    mistral = write_model_directory(tmp_path, architectures=["MistralForCausalLM"])
    text = (mistral / "config.json").read_text()
    (mistral / "config.json").write_text(text.replace("{", '{"sliding_window": null, ', 1))
    read_model_directory(str(mistral))


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _replace_by_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("config.json", _replace_by_directory, "config.json cannot be read: Is a directory"),
        ("config.json", Path.unlink, "config.json is missing"),
        ("config.json", _truncate, "config.json is corrupt: "),
        ("config.json", lambda file: file.write_text("[]"), "config.json is corrupt: a JSON object is expected"),
        ("config.json", lambda file: file.write_bytes(b"\xff{}"), "config.json is corrupt: 'utf-8' codec"),
        ("model.safetensors", Path.unlink, "has neither model.safetensors nor model.safetensors.index.json"),
        ("model.safetensors", _truncate, "bytes where its header promises"),
        ("model.safetensors", lambda file: file.write_bytes(b""), "is not a safetensors file, or its header is dam"),
        ("model.safetensors", lambda file: file.write_text("version https://git-lfs"), "is not a safetensors file"),
        (
            "tokenizer.json",
            Path.unlink,
            "tokenizer.json is missing; give a Hugging Face model directory with its tok",
        ),
        ("tokenizer.json", lambda file: file.write_text("{}"), "holds no vocabulary (model.vocab)"),
    ],
)
def test_damaged_files(tmp_path: Path, file: str, damage: Callable[[Path], object], message: str) -> None:
    damage(write_model_directory(tmp_path) / file)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    ("tied", "change", "message"),
    [
        (
            False,
            {"lm_head.weight": None},
            "missing weights in the checkpoint: lm_head.weight; tie_word_embeddings=true",
        ),
        (False, {"model.norm.weight": None}, "missing weights in the checkpoint: model.norm.weight"),
        (False, {"model.layers.0.extra": np.zeros(1)}, "unknown weights in the checkpoint: model.layers.0.extra"),
        (False, {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4)}, None),
        (True, {"lm_head.weight": np.zeros(2, np.float32)}, None),
        (True, {"lm_head.weight": np.array([0, 1], np.float32)}, "lm_head.weight differs from model.embed_tokens"),
        (True, {"lm_head.weight": np.zeros(2, np.float16)}, "lm_head.weight differs from model.embed_tokens"),
    ],
)
def test_weights_and_configuration(
    tmp_path: Path, tied: bool, change: dict[str, np.ndarray[Any, Any] | None], message: str | None
) -> None:
    file = write_model_directory(tmp_path, tie_word_embeddings=tied) / "model.safetensors"
    weights = load_file(file) | change
    save_file({name: weight for name, weight in weights.items() if weight is not None}, file)
    if message is None:
        read_model_directory(str(tmp_path))
    else:
        assert message in refusal(tmp_path)


def test_added_tokens_count(tmp_path: Path) -> None:
    write_model_directory(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [{"id": 12, "content": "<new>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "has token ids up to 12, but the model embeds only 12" in refusal(tmp_path)


def test_no_directory(tmp_path: Path) -> None:
    assert "there is no such directory" in refusal(tmp_path / "nowhere")
