"""The actor's life on one GPU: bf16 training with the distributed optimizer, checkpoints, off-loading, its layers.

Why it matters: fused Adam, float32 main weights beside bf16 ones and checkpoints of CUDA tensors are other code than
on a CPU.

Not exercised: several GPUs; exact gradients, which are test_gradients_gpu.py's.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.gpu


def make_actor(**changes: Any) -> Any:
    from gradient_worker import OPTIMIZER
    from layouts import enter
    from parity_worker import actor_config
    from toy_models import hf_weights, random_model

    from nemo_ibtpo.megatron.actor import MegatronActor
    from nemo_ibtpo.megatron.architecture import architecture_from_config

    model = random_model("qwen3")
    config = replace(actor_config(1, 1, False, None), device="cuda", **changes)
    return MegatronActor(
        architecture_from_config(model.config),
        hf_weights(model),
        actor=config,
        optimizer=replace(OPTIMIZER, lr=1e-3, clip_grad=1.0),
        total_updates=40,
        dtype=torch.bfloat16,
        temperature=1.0,
        keep_reference=False,
        context=enter(config),
    )


def train(actor: Any, steps: int) -> list[dict[str, float]]:
    from actor_worker import likelihood, make_batches

    actor.prepare_for_training()
    metrics = [actor.train_step(make_batches(), likelihood, 100) for _ in range(steps)]
    actor.finish_training()
    return metrics


def weights(actor: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in actor.named_weights()}


def test_bf16_training_lowers_the_loss() -> None:
    actor = make_actor()
    losses = [metrics["loss"] for metrics in train(actor, 20)]
    assert losses[-1] < 0.8 * losses[0]
    assert {tensor.dtype for tensor in weights(actor).values()} == {torch.bfloat16}


def test_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("psutil", reason="psutil is not installed; without it Megatron's checkpoints hang")
    actor = make_actor()
    train(actor, 3)
    actor.save(tmp_path / "saved")
    loaded = make_actor()
    train(loaded, 1)  # a state of its own, which has to give way
    loaded.load(tmp_path / "saved")
    before, after = weights(actor), weights(loaded)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    expected, found = train(actor, 3), train(loaded, 3)
    for theirs, ours in zip(expected, found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)  # some sums on a GPU have no order


@pytest.mark.parametrize("offload", ["optimizer", "all"])
def test_offloaded_state_leaves_the_gpu_and_comes_back(offload: str) -> None:
    plain, offloaded = make_actor(), make_actor(offload=offload)
    for _ in range(2):
        expected, found = train(plain, 2), train(offloaded, 2)
        for theirs, ours in zip(expected, found, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3)  # some sums on a GPU have no order
        before = torch.cuda.memory_allocated()
        weights(offloaded)
        parameters = sum(p.numel() for chunk in offloaded._chunks for p in chunk.parameters())
        # Float32 gradients, main weights and two moments; with ``all`` the bf16 weights too.
        assert before - torch.cuda.memory_allocated() >= parameters * (18 if offload == "all" else 16)


def test_weights_gathered_in_the_next_forward_pass_are_the_same() -> None:
    buckets = {"overlap_grad_reduce": True, "grad_bucket_size": 3000}
    plain, gathering = (make_actor(**buckets, overlap_param_gather=gathers) for gathers in (False, True))
    assert gathering._chunks[0].use_forward_hook
    for _ in range(2):
        expected, found = train(plain, 2), train(gathering, 2)
        for theirs, ours in zip(expected, found, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3)  # some sums on a GPU have no order
        before, after = weights(plain), weights(gathering)
        for name in before:
            torch.testing.assert_close(after[name], before[name], rtol=0.02, atol=1e-3)


def test_linear_layers_accumulate_gradients_in_their_products() -> None:
    actor = make_actor()
    if not actor._config.gradient_accumulation_fusion:
        pytest.skip("neither Transformer Engine nor apex with fused_weight_gradient_mlp_cuda is installed")
    train(actor, 1)
    fused = [
        name
        for chunk in actor._chunks
        for name, parameter in chunk.module.named_parameters()
        if parameter.grad_added_to_main_grad
    ]
    linear = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
    assert all(any(layer in name for name in fused) for layer in linear)
    assert all(any(layer in name for layer in linear) for name in fused)


@pytest.mark.skipif(find_spec("transformer_engine") is None, reason="Transformer Engine is not installed")
def test_layers_are_transformer_engines() -> None:
    modules = {
        type(module).__module__.partition(".")[0] for chunk in make_actor()._chunks for module in chunk.modules()
    }
    assert "transformer_engine" in modules
