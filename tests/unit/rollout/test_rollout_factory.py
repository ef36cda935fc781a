"""What lies between a run's configuration and its engine: model directory, end-of-sequence ids, clear refusals.

Directories are written by transformers itself; models fetched from a hub are not exercised.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_models import random_model
from transformers import PreTrainedTokenizerFast

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import RolloutConfig, TransformersEngineConfig, VLLMEngineConfig
from nemo_ibtpo.rollout.engine import RolloutEngine, SamplingParams
from nemo_ibtpo.rollout.factory import find_eos_token_ids, load_model, make_engine
from nemo_ibtpo.rollout.transport.gathered import GatheredTransport
from nemo_ibtpo.tree.rollouts import RolloutRequest

CONFIG = RolloutConfig(
    engine="transformers",
    tensor_parallel_size=1,
    num_replicas=None,
    max_new_tokens=16,
    temperature=0.7,
    top_p=0.95,
    top_k=20,
    repetition_penalty=1.0,
    stop=["\n\n"],
    max_batch_size=4,
    transformers=TransformersEngineConfig(cache_tokens=1024),
    vllm=VLLMEngineConfig(0.5, 1.0, False, 60.0, 60.0, 1),
)


def make(directory: Path, tokenizer: PreTrainedTokenizerFast, *, here: bool = True) -> RolloutEngine:
    return make_engine(
        CONFIG,
        directory,
        tokenizer,
        here=here,
        dtype=torch.float32,
        device="cpu",
        max_model_len=32,
        output_dir=directory,
        for_training=True,
    )


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    model = random_model("llama")
    model.generation_config.eos_token_id = [7, 9]
    model.save_pretrained(tmp_path)
    return tmp_path


def test_engine_from_a_directory(model_dir: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    engine = make(model_dir, tokenizer)
    assert engine.sampling == SamplingParams(
        temperature=0.7, top_p=0.95, top_k=20, stop=("\n\n",), eos_token_ids=(0, 7, 9)
    )
    engine.submit([RolloutRequest("r", (1, 2), 5, seed=3)])
    rollouts = []
    while not rollouts:
        rollouts = engine.poll()
    assert rollouts[0].request_id == "r" and rollouts[0].tokens


def test_a_rank_without_an_engine(model_dir: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """It samples nothing, but takes part in the collective that gathers the weights."""
    consumed = []

    class Source:
        def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name in "abc":
                consumed.append(name)
                yield name, torch.ones(1)

    engine = make(model_dir, tokenizer, here=False)
    assert engine.sampling == make(model_dir, tokenizer).sampling
    engine.submit([])
    assert engine.poll() == []
    with pytest.raises(RuntimeError, match="no engine"):
        engine.submit([RolloutRequest("r", (1, 2), 5, seed=3)])
    GatheredTransport().publish(Source())
    assert consumed == ["a", "b", "c"]


def test_end_of_sequence_ids(model_dir: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    assert find_eos_token_ids(model_dir, tokenizer) == (0, 7, 9)
    (model_dir / "generation_config.json").unlink()
    assert find_eos_token_ids(model_dir, tokenizer) == (0,)
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="end-of-sequence"):
        find_eos_token_ids(model_dir, without)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a directory with a Hugging Face model"):
        load_model(tmp_path / "nowhere", dtype=torch.float32, device="cpu", max_model_len=64)


def test_damaged_weights_are_refused(model_dir: Path) -> None:
    weights = model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="holds no readable model") as error:
        load_model(model_dir, dtype=torch.float32, device="cpu", max_model_len=64)
    assert "\n" not in str(error.value)


def test_pickled_weights_are_refused(model_dir: Path) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    (model_dir / "model.safetensors").unlink()
    torch.save(tensors, model_dir / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load_model(model_dir, dtype=torch.float32, device="cpu", max_model_len=64)


@pytest.mark.parametrize("change", ["missing", "unexpected", "mismatched"])
def test_weights_that_do_not_fit_are_named(model_dir: Path, change: str) -> None:
    name = "model.layers.2.self_attn.q_proj.weight"
    tensors = load_file(model_dir / "model.safetensors")
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        name = "model.layers.2.self_attn.extra"
        tensors[name] = torch.ones(3)
    else:
        tensors[name] = torch.ones(3, 3)
    save_file(tensors, model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=name) as error:
        load_model(model_dir, dtype=torch.float32, device="cpu", max_model_len=64)
    assert "\n" not in str(error.value)
