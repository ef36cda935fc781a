"""A model that goes to Megatron's format and back is the same bit for bit, with every file that belongs to it.

Why it matters: conversion is how models come in and go out; a rule applied the wrong way round trains another model.

Toy models of every family, tied and untied, in shards, through the functions of the command. That Megatron itself
reads what is written, and that a training checkpoint of four ranks converts, is
tests/distributed/test_conversion.py. Not exercised: models of a real size.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conversion_models import convert_back, convert_to, weights_of, write_toy_model

from nemo_ibtpo.checkpoints.manifest import read_manifest
from nemo_ibtpo.config.errors import UserError

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_bitwise(tmp_path: Path, family: str, tied: bool, dtype: torch.dtype) -> None:
    source = write_toy_model(tmp_path / "hf", family, tied=tied, dtype=dtype)
    assert len(list(source.glob("*.safetensors"))) > 1
    convert_to(source, tmp_path / "megatron")
    convert_back(tmp_path / "megatron", tmp_path / "back", max_shard_bytes=20_000)
    before, after = weights_of(source), weights_of(tmp_path / "back")
    assert before.keys() == after.keys()
    assert ("lm_head.weight" in after) is not tied
    for name, weight in before.items():
        assert after[name].dtype is dtype
        assert torch.equal(after[name], weight), name


def test_everything_beside_the_weights_goes_along(tmp_path: Path) -> None:
    source = write_toy_model(tmp_path / "hf", "qwen3")
    convert_to(source, tmp_path / "megatron")
    convert_back(tmp_path / "megatron", tmp_path / "back")
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    before, after = (json.loads((directory / "config.json").read_text()) for directory in (source, tmp_path / "back"))
    assert after | before == after
    assert set(after) - set(before) == {"rope_scaling", "rope_theta", "torch_dtype"}  # of transformers 4
    assert set(read_manifest(tmp_path / "megatron")) >= {"megatron/.metadata", "model/config.json"}


def test_shards_keep_to_their_size_and_the_index_names_them(tmp_path: Path) -> None:
    convert_to(write_toy_model(tmp_path / "hf", "qwen3"), tmp_path / "megatron")
    convert_back(tmp_path / "megatron", tmp_path / "back", max_shard_bytes=30_000)
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 3
    assert all((tmp_path / "back" / file).stat().st_size < 30_000 + 4096 for file in files)  # and a header
    weights = weights_of(tmp_path / "back")
    assert index["metadata"]["total_size"] == sum(w.numel() * w.element_size() for w in weights.values())


def test_the_type_is_a_choice_either_way(tmp_path: Path) -> None:
    source = write_toy_model(tmp_path / "hf", "qwen2")
    convert_to(source, tmp_path / "bf16", dtype="bf16")
    convert_back(tmp_path / "bf16", tmp_path / "back")
    convert_to(source, tmp_path / "fp32")
    convert_back(tmp_path / "fp32", tmp_path / "fp16", dtype="fp16")
    for directory, dtype, name in (("back", torch.bfloat16, "bfloat16"), ("fp16", torch.float16, "float16")):
        assert json.loads((tmp_path / directory / "config.json").read_text())["dtype"] == name
        after = weights_of(tmp_path / directory)
        assert all(torch.equal(after[key], weight.to(dtype)) for key, weight in weights_of(source).items())


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_verification_sees_a_wrong_weight(tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_toy_model(tmp_path / "hf", family)
    convert_to(source, tmp_path / "megatron", verify=True)
    convert_back(tmp_path / "megatron", tmp_path / "back", verify=True)
    assert capsys.readouterr().out.count("verified: logits of 64 tokens differ by at most") == 2

    from nemo_ibtpo.conversion.verify import verify_logits

    other = write_toy_model(tmp_path / "other", family, change="model.layers.2.self_attn.v_proj.weight")
    with pytest.raises(UserError, match="verification failed: logits of Hugging Face and Megatron differ by up to"):
        verify_logits(other, tmp_path / "megatron" / "megatron", torch.float32, "own")
