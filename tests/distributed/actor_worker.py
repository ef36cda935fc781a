"""Ranks of test_actor.py: the actor's life under TP2 x PP2 and under data parallelism."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from comparing_runs import tensors
from gradient_worker import OPTIMIZER
from layouts import enter
from parity_worker import Layout, actor_config
from torch import Tensor
from toy_models import VOCAB, checkpoint_names, hf_weights, random_model, random_tree, shared_model
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.losses import LossInputs, LossOutput
from nemo_ibtpo.megatron import offload as offloading
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.packing import PackedBatch, pack_tree
from nemo_ibtpo.tree.tree import Tree

EXPERT_LAYOUT: Layout = (2, 2, True, None, 2)
CONTEXT_LAYOUT: Layout = (1, 2, False, None, 2, 2)


def make_actor(
    layout: Layout,
    dtype: torch.dtype,
    *,
    family: str = "qwen3",
    aux_loss: float | None = 0.0,
    sharded: bool = True,
    offload: Any = "none",
    buckets: dict[str, Any] | None = None,
    **optimizer: Any,
) -> MegatronActor:
    model = shared_model(family)
    return MegatronActor(
        architecture_from_config(model.config),
        hf_weights(model),
        actor=replace(
            actor_config(*layout),
            moe_aux_loss_coef=aux_loss,
            use_distributed_optimizer=sharded,
            offload=offload,
            **(buckets or {}),
        ),
        optimizer=replace(OPTIMIZER, **optimizer),
        total_updates=10,
        dtype=dtype,
        temperature=1.0,
        keep_reference=True,
        context=enter(actor_config(*layout)),
    )


def packed(tree: Tree) -> PackedBatch:
    batch = pack_tree(tree)
    return replace(batch, old_logprobs=batch.behaviour_logprobs)


def make_batches() -> list[PackedBatch]:
    rng = np.random.default_rng(2)
    return [packed(random_tree(rng)) for _ in range(3)]


def likelihood(inputs: LossInputs) -> LossOutput:
    return -inputs.logprobs.sum() / inputs.denominator, {"tokens": torch.tensor(float(len(inputs.logprobs)))}


def weights(actor: MegatronActor) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in actor.named_weights()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def reference_policy(family: str, layout: Layout) -> dict[str, Any]:
    actor, batches = make_actor(layout, torch.float32, family=family, lr=1e-2), make_batches()
    initial = actor.logprobs(batches)
    losses = [actor.train_step(batches, likelihood, 100)["loss"] for _ in range(5)]
    before = weights(actor)
    reference = actor.reference_logprobs(batches)
    return {
        "losses_fall": all(b < a for a, b in pairwise(losses)),
        "reference_is_initial": all(np.array_equal(a, b) for a, b in zip(reference, initial, strict=True)),
        "policy_moved": not np.array_equal(actor.logprobs(batches)[0], initial[0]),
        "weights_come_back": same(weights(actor), before),
    }


def learning_rate() -> dict[str, Any]:
    actor, batches = (
        make_actor((1, 2, False, None), torch.float32, lr=1.0, warmup_steps=4, decay_style="linear"),
        make_batches(),
    )
    return {"lr": [actor.train_step(batches, likelihood, 100)["lr"] for _ in range(10)]}


def clipping(family: str, layout: Layout) -> dict[str, Any]:
    free = make_actor(layout, torch.float32, family=family, sharded=False)
    metrics = free.train_step(make_batches(), likelihood, 100)
    norm = metrics["grad_norm"]
    actor = make_actor(layout, torch.float32, family=family, sharded=False, clip_grad=norm / 10, lr=1e-30)
    actor.train_step(make_batches(), likelihood, 100)
    clipped = sum(float(g.double().pow(2).sum()) for _, g in actor.named_gradients()) ** 0.5
    # Every data-parallel rank trained the same micro-batches.
    tokens = free.data_parallel_size * sum(int(batch.in_loss.sum()) for batch in make_batches())
    return {"norm": norm, "clipped": clipped, "reported": metrics["tokens"], "tokens": tokens}


def aux_loss(layout: Layout) -> dict[str, Any]:
    """Gradients of the load-balancing loss alone, against transformers' own in float64, layer by layer."""
    actor = make_actor(layout, torch.float32, family="qwen3_moe", aux_loss=None, sharded=False, lr=1e-30)
    rng = np.random.default_rng(3)
    chains = []
    for length in (8, 12, 20, 6) * 2:  # not one length, and multiples of the ranks that share them
        tree = Tree("p", rng.integers(0, VOCAB, 2).tolist())
        tree.insert(ROOT, [(rng.integers(0, VOCAB, length - 2).tolist(), [-1.0] * (length - 2))], "eos", round=0)
        chains.append(packed(tree))
    mine = chains[actor.data_parallel_rank :: actor.data_parallel_size]
    actor.train_step(mine, lambda inputs: (0.0 * inputs.logprobs.sum(), {}), 1)

    model = random_model("qwen3_moe", dtype=torch.float64)
    experts, per_token = model.config.num_experts, model.config.num_experts_per_tok
    total, tokens = torch.zeros((), dtype=torch.float64), sum(len(chain) for chain in chains)
    for chain in chains:
        output = model(torch.from_numpy(chain.tokens)[None], output_router_logits=True)
        for logits in output.router_logits:
            loss = load_balancing_loss_func((logits,), experts, per_token) / per_token
            total = total + model.config.router_aux_loss_coef * loss * len(chain) / tokens
    total.backward()
    gradients = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}
    expected = checkpoint_names(model, gradients)
    largest = max(float(g.norm()) for g in expected.values())
    errors = {name: float((g.double() - expected[name]).norm()) / largest for name, g in actor.named_gradients()}
    return {"error": max(errors.values()), "largest": largest}


def bf16() -> dict[str, Any]:
    # One step is far below bf16's resolution at these weights; only fp32 main weights add such steps up.
    actor, batches = make_actor((2, 2, True, None), torch.bfloat16, lr=2e-5), make_batches()
    name = "model.layers.0.mlp.up_proj.weight"
    start = weights(actor)[name]

    def moved() -> float:
        return float((weights(actor)[name] != start).float().mean())

    actor.train_step(batches, likelihood, 100)
    moved_after_1 = moved()
    for _ in range(14):
        actor.train_step(batches, likelihood, 100)
    return {"dtype": str(start.dtype), "moved_after_1": moved_after_1, "moved_after_15": moved()}


def offload(level: str, layout: Layout, dtype: torch.dtype, *, sharded: bool) -> dict[str, Any]:
    """A life with state in host memory between iterations, beside one without."""

    def live(actor: MegatronActor) -> tuple[list[Any], dict[str, Tensor]]:
        batches, seen = make_batches(), []
        for _ in range(2):
            seen += [row.tolist() for row in actor.logprobs(batches) + actor.reference_logprobs(batches)]
            seen += [actor.train_step(batches, likelihood, 100) for _ in range(2)]
            handed_out = weights(actor)
        return seen, handed_out

    expected, expected_weights = live(make_actor(layout, dtype, sharded=sharded, lr=1e-2))
    actor = make_actor(layout, dtype, sharded=sharded, lr=1e-2, offload=level)
    found, found_weights = live(actor)
    buffers = [b for chunk in actor._chunks for b in chunk.buffers]
    parked = [*actor._offload._training._storages, *actor._offload._weights._storages]
    return {
        "same": found == expected and same(found_weights, expected_weights),
        "on the device": sum(b.grad_data.untyped_storage().nbytes() for b in buffers)
        + sum(device.nbytes() for device, _ in parked),
        "weights parked": sum(host.nbytes() for _, host in actor._offload._weights._storages),
        "training state parked": sum(host.nbytes() for _, host in actor._offload._training._storages),
        "parameters": sum(p.numel() for chunk in actor._chunks for p in chunk.parameters()),
    }


def off_another_device(layout: Layout) -> bool:
    """Off-loading where torch gives weights new gradient accumulators, as on a GPU: there the parked tensor is of
    another device, here of another dtype."""

    def elsewhere(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
        return torch.empty_like(like, dtype=torch.float64)

    with patch.object(offloading, "_view", elsewhere):
        return bool(offload("all", layout, torch.bfloat16, sharded=True)["same"])


def gathered_meanwhile(layout: Layout, dtype: torch.dtype, directory: Path, **kind: Any) -> dict[str, bool]:
    """A life whose weights are gathered in the next forward pass, beside one where the optimizer step does it."""

    def make(gathers: bool) -> MegatronActor:
        buckets = {"overlap_grad_reduce": True, "overlap_param_gather": gathers, "grad_bucket_size": 3000}
        return make_actor(layout, dtype, lr=1e-2, clip_grad=1.0, buckets=buckets, **kind)

    batches = make_batches()[:2]  # an even number, for interleaved pipelines

    def train(actor: MegatronActor, steps: int = 1) -> list[Any]:
        return [actor.train_step(batches, likelihood, 100) for _ in range(steps)]

    def live(gathers: bool) -> tuple[list[Any], list[dict[str, Tensor]], bool]:
        actor = make(gathers)
        seen = train(actor, 2)
        at_once = [p.clone() for chunk in actor._chunks for p in chunk.parameters()]
        handed_out = [weights(actor)]
        whole = all(map(torch.equal, at_once, (p for chunk in actor._chunks for p in chunk.parameters())))
        seen += train(actor) + [row.tolist() for row in actor.reference_logprobs(batches)]
        seen += train(actor) + [row.tolist() for row in actor.logprobs(batches)] + train(actor)
        actor.save(directory / str(gathers))
        seen += train(actor)
        handed_out.append(weights(actor))
        return seen, handed_out, whole

    (expected, expected_weights, _), (found, found_weights, whole) = live(False), live(True)
    loaded = make(True)
    train(loaded)  # a state of its own, which has to give way
    loaded.load(directory / str(True))
    train(loaded)
    first, second = (tensors(directory / str(gathers)) for gathers in (False, True))
    results = {
        "the same is seen": found == expected,
        "weights are the same": all(map(same, found_weights, expected_weights)),
        "goes on from a checkpoint": same(weights(loaded), found_weights[-1]),
        "checkpoints are the same": all(torch.equal(first[name], second[name]) for name in first),
        "incomplete after a step": not whole,
    }
    everyone: list[dict[str, bool]] = [results] * dist.get_world_size()
    dist.all_gather_object(everyone, results)
    return {name: all(own[name] for own in everyone) for name in results}


def non_finite(kind: str) -> dict[str, Any]:
    actor, batches = make_actor((1, 2, False, None), torch.float32), make_batches()
    before = weights(actor)

    def loss(inputs: LossInputs) -> LossOutput:
        value, sums = likelihood(inputs)
        sums["hidden"] = torch.tensor(0.0)  # what a loss may report without being made of it
        if actor.data_parallel_rank == 1:  # one rank of one group meets it; all have to stop
            finite = 0.0 * (inputs.logprobs - inputs.logprobs).sqrt().sum()  # whose gradient is 0 * inf
            value = value + {"loss": torch.nan, "gradient": finite, "hidden": 0.0}[kind]
            sums["hidden"] += torch.inf if kind == "hidden" else 0.0
        return value, sums

    try:
        actor.train_step(batches, loss, 100)
        message = "nothing was raised"
    except UserError as error:
        message = str(error)
    messages: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    return {"messages": messages, "weights_kept": same(weights(actor), before)}


def main() -> None:
    root = Path(sys.argv[1]).parent
    checks = {
        "reference_policy": lambda: reference_policy("qwen3", (2, 2, True, None)),
        "reference_policy experts": lambda: reference_policy("qwen3_moe", EXPERT_LAYOUT),
        **{
            f"offload {level} {kind}": partial(offload, level, (1, 2, False, None), dtype, sharded=sharded)
            for level in ("optimizer", "all")
            for kind, dtype, sharded in (
                ("bf16", torch.bfloat16, True),
                ("fp32", torch.float32, True),
                ("unsharded bf16", torch.bfloat16, False),
            )
        },
        "off another device": lambda: off_another_device((1, 2, False, None)),
        "gathered meanwhile pp2-vpp2-dp2 bf16": lambda: gathered_meanwhile(
            (1, 2, False, 2), torch.bfloat16, root / "gathered"
        ),
        "learning_rate": learning_rate,
        "clipping": lambda: clipping("qwen3", (2, 2, False, None)),
        "clipping experts": lambda: clipping("qwen3_moe", EXPERT_LAYOUT),
        "clipping experts ep1": lambda: clipping("qwen3_moe", (2, 1, True, None)),
        "gathered meanwhile tp2-sp-dp2-ep2": lambda: gathered_meanwhile(
            (2, 1, True, None, 2), torch.float32, root / "gathered_experts", family="qwen3_moe", offload="all"
        ),
        "clipping context": lambda: clipping("qwen3_moe", CONTEXT_LAYOUT),
        "aux_loss": lambda: aux_loss((1, 1, False, None, 2)),
        "aux_loss tp2-pp2": lambda: aux_loss(EXPERT_LAYOUT),
        "aux_loss cp2": lambda: aux_loss((1, 1, False, None, 2, 2)),
        "bf16": bf16,
        "nan_loss": lambda: non_finite("loss"),
        "nan_gradient": lambda: non_finite("gradient"),
        "hidden": lambda: non_finite("hidden"),
    }
    results = {name: check() for name, check in checks.items()}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
