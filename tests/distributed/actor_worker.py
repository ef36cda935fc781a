"""Ranks of test_actor.py: the actor's life under TP2 x PP2 and under data parallelism."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from gradient_worker import OPTIMIZER
from layouts import enter
from parity_worker import Layout, actor_config
from torch import Tensor
from toy_models import random_model, random_tree

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.megatron.actor import Fields, MegatronActor
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.tree.microbatches import MicroBatch
from nemo_ibtpo.tree.packing import pack_trees


def make_actor(layout: Layout, dtype: torch.dtype, **optimizer: Any) -> MegatronActor:
    model = random_model("qwen3")
    return MegatronActor(
        architecture_from_config(model.config),
        model.state_dict(),
        actor=actor_config(*layout),
        optimizer=replace(OPTIMIZER, **optimizer),
        total_updates=10,
        dtype=dtype,
        temperature=1.0,
        keep_reference=True,
        context=enter(actor_config(*layout)),
    )


def make_batches() -> list[MicroBatch]:
    rng = np.random.default_rng(2)
    return [MicroBatch(pack_trees([random_tree(rng)]), {}) for _ in range(3)]


def likelihood(logprobs: Tensor, entropies: Tensor, fields: Fields) -> tuple[Tensor, dict[str, Tensor]]:
    return -logprobs.sum() / 100, {"tokens": torch.tensor(float(len(logprobs)))}


def weights(actor: MegatronActor) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in actor.named_weights()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def reference_policy() -> dict[str, Any]:
    actor, batches = make_actor((2, 2, True, None), torch.float32, lr=1e-2), make_batches()
    initial = actor.logprobs(batches)
    losses = [actor.train_step(batches, likelihood)["loss"] for _ in range(5)]
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
    return {"lr": [actor.train_step(batches, likelihood)["lr"] for _ in range(10)]}


def clipping() -> dict[str, Any]:
    free = make_actor((2, 2, False, None), torch.float32)
    norm = free.train_step(make_batches(), likelihood)["grad_norm"]
    actor = make_actor((2, 2, False, None), torch.float32, clip_grad=norm / 10, lr=0.0)
    actor.train_step(make_batches(), likelihood)
    clipped = sum(float(g.double().pow(2).sum()) for _, g in actor.named_gradients()) ** 0.5
    return {"norm": norm, "clipped": clipped}


def bf16() -> dict[str, Any]:
    # One step is far below bf16's resolution at these weights; only fp32 main weights add such steps up.
    actor, batches = make_actor((2, 2, True, None), torch.bfloat16, lr=2e-5), make_batches()
    start = weights(actor)
    moved = []
    for _ in range(60):
        actor.train_step(batches, likelihood)
        now = weights(actor)
        name = "model.layers.0.mlp.up_proj.weight"
        moved.append(float((now[name] != start[name]).float().mean()))
    return {"dtype": str(now[name].dtype), "moved_after_1": moved[0], "moved_after_60": moved[-1]}


def non_finite(kind: str) -> dict[str, Any]:
    actor, batches = make_actor((1, 2, False, None), torch.float32), make_batches()
    before = weights(actor)

    def loss(logprobs: Tensor, entropies: Tensor, fields: Fields) -> tuple[Tensor, dict[str, Tensor]]:
        value, sums = likelihood(logprobs, entropies, fields)
        sums["hidden"] = torch.tensor(0.0)  # what a loss may report without being made of it
        if actor.data_parallel_rank == 1:  # one rank of one group meets it; all have to stop
            finite = 0.0 * (logprobs - logprobs).sqrt().sum()  # whose gradient is 0 * inf
            value = value + {"loss": torch.nan, "gradient": finite, "hidden": 0.0}[kind]
            sums["hidden"] += torch.inf if kind == "hidden" else 0.0
        return value, sums

    try:
        actor.train_step(batches, loss)
        message = "nothing was raised"
    except UserError as error:
        message = str(error)
    messages: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    return {"messages": messages, "weights_kept": same(weights(actor), before)}


def main() -> None:
    checks = {
        "reference_policy": reference_policy,
        "learning_rate": learning_rate,
        "clipping": clipping,
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
