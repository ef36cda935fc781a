"""Ranks of test_memory.py: what each rank's model, buffers and optimizer really hold, beside what is predicted."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from actor_worker import likelihood, make_batches
from gradient_worker import OPTIMIZER
from layouts import enter
from parity_worker import Layout, actor_config
from toy_models import hf_weights, shared_model

from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.planning import parameters
from nemo_ibtpo.planning.model_shape import shape_of

# In the order of their process groups: family, layout, precision, distributed optimizer.
CASES: list[tuple[str, Layout, torch.dtype, bool]] = [
    ("llama", (1, 1, False, None), torch.bfloat16, True),
    ("qwen3", (1, 1, False, None), torch.float32, True),
    ("qwen2", (2, 1, True, None), torch.bfloat16, True),
    ("llama", (1, 2, False, None), torch.float32, False),
    ("qwen2", (1, 2, False, None), torch.bfloat16, False),
    ("qwen3", (1, 2, False, None), torch.bfloat16, True),
    ("qwen3", (1, 2, False, 2), torch.bfloat16, True),
    ("llama", (2, 2, True, None), torch.bfloat16, True),
    ("qwen3_moe", (1, 1, False, None, 2), torch.bfloat16, True),
    ("qwen3_moe", (1, 1, False, None, 4), torch.float32, True),
    ("qwen3_moe", (2, 2, True, None, 2), torch.bfloat16, True),
]


def storages(tensors: list[torch.Tensor]) -> float:
    """Bytes of the distinct storages behind the tensors."""
    return float(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()))


def check(family: str, layout: Layout, dtype: torch.dtype, sharded: bool) -> list[dict[str, Any]]:
    """What every rank holds and what is predicted for its stage."""
    model = shared_model(family)
    config = replace(actor_config(*layout), use_distributed_optimizer=sharded)
    actor = MegatronActor(
        architecture_from_config(model.config),
        hf_weights(model),
        actor=config,
        optimizer=OPTIMIZER,
        total_updates=1,
        dtype=dtype,
        temperature=1.0,
        keep_reference=False,
        context=enter(config),
    )
    batches = make_batches()
    actor.train_step([*batches, batches[0]], likelihood, 100)  # Adam makes its moments in the first step
    tensor, pipeline, sequence, chunks, *expert = layout
    hf_config = model.config.to_dict() | {"num_experts": getattr(model.config, "num_experts", None)}
    hf_config["architectures"] = [type(model).__name__]
    shape = shape_of(hf_config)
    predicted = parameters.Layout(
        tensor=tensor,
        context=1,
        pipeline=pipeline,
        chunks=chunks or 1,
        expert=expert[0] if expert else 1,
        data=dist.get_world_size() // tensor // pipeline,
        sequence=tensor if sequence else 1,
        shards_optimizer=sharded,
        itemsize=dtype.itemsize,
    )
    stage = torch.distributed.get_rank() // (dist.get_world_size() // pipeline)
    own = [p for chunk in actor._chunks for p in chunk.parameters()]
    buffers = [b for chunk in actor._chunks for b in (*chunk.buffers, *chunk.expert_parallel_buffers)]
    optimizers = getattr(actor._optimizer, "chained_optimizers", [actor._optimizer])
    held = []
    for optimizer in optimizers:
        for parameter, state in optimizer.optimizer.state.items():
            held += [value for name, value in state.items() if name != "step"]
            if dtype is torch.bfloat16:
                held.append(parameter)
    static = parameters.static_bytes(shape, predicted, stage)
    mine = {
        "stage": stage,
        "parameters": sum(p.numel() for p in own),
        "weights": storages([p.data for p in own]),
        "gradients": storages([b.grad_data for b in buffers]),
        "optimizer": storages(held),
        "predicted": {
            "parameters": sum(
                parameters.chunk_parameters(shape, predicted, stage, chunk).count for chunk in range(predicted.chunks)
            ),
            "weights": static.weights,
            "gradients": static.gradients,
            "optimizer": static.optimizer,
        },
    }
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    return ranks


def main() -> None:
    results = {
        f"{family} {'-'.join(map(str, layout))} {dtype} {'sharded' if sharded else 'replicated'}": check(
            family, layout, dtype, sharded
        )
        for family, layout, dtype, sharded in CASES
    }
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.barrier()


if __name__ == "__main__":
    main()
