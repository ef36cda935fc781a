"""Ranks of test_checkpoint.py: saving under one layout, loading under others."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from actor_worker import likelihood, make_batches, same, weights
from comparing_runs import tensors
from gradient_worker import OPTIMIZER
from layouts import enter
from parity_worker import Layout, actor_config
from toy_models import VOCAB, hf_weights, shared_model

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.training.background import Background

# In the order of their process groups.
SAVED: Layout = (2, 2, True, None)
OTHERS: list[Layout] = [(1, 1, False, None), (2, 1, False, None), (1, 2, False, 2), (2, 2, False, 2)]
SAVED_EXPERTS: Layout = (1, 1, False, None, 2)
SAVED_CONTEXT: Layout = (1, 2, False, None, 1, 2)
OTHER_EXPERTS: list[Layout] = [(1, 1, False, None, 4), (2, 2, True, None, 2)]


def make_actor(
    layout: Layout, *, dtype: torch.dtype = torch.float32, sharded: bool = True, family: str = "qwen3"
) -> MegatronActor:
    model = shared_model(family)
    config = replace(actor_config(*layout), use_distributed_optimizer=sharded)
    settings = replace(OPTIMIZER, lr=1e-2, warmup_steps=3, decay_style="linear", weight_decay=0.1, clip_grad=1.0)
    return MegatronActor(
        architecture_from_config(model.config),
        hf_weights(model),
        actor=config,
        optimizer=settings,
        total_updates=20,
        dtype=dtype,
        temperature=1.0,
        keep_reference=False,
        context=enter(config),
    )


def train(actor: MegatronActor, steps: int) -> list[dict[str, float]]:
    batches = make_batches()
    batches = [*batches, batches[0]]  # an even number, for interleaved pipelines
    return [actor.train_step(batches, likelihood, 100) for _ in range(steps)]


def all_ranks(value: bool) -> bool:
    values: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return all(values)


def goes_on(directory: Path, layout: Layout = SAVED, *, later: bool = False, **kind: Any) -> bool:
    """Whether an actor that was loaded does what the one that was saved goes on to do, bit for bit.

    Args:
        later: the checkpoint is written by a thread, while training goes on, and once more after it.
    """
    actor = make_actor(layout, **kind)
    train(actor, 3)
    different: list[str] = []
    if later:
        background: Background[None] = Background(60)
        snapshot = actor.snapshot(copied=True)
        background.start(lambda: snapshot.write(directory.with_suffix(".thread"), background.group))
        metrics = train(actor, 3)
        background.result(wait=True)
        snapshot.write(directory)
        first, second = tensors(directory.with_suffix(".thread")), tensors(directory)
        different = [name for name in second if not torch.equal(first[name], second[name])]
    else:
        actor.save(directory)
        metrics = train(actor, 3)
    loaded = make_actor(layout, **kind)
    train(loaded, 1)  # a state of its own, which has to give way
    loaded.load(directory)
    return all_ranks(not different and train(loaded, 3) == metrics and same(weights(loaded), weights(actor)))


def before_the_first_step(directory: Path) -> bool:
    actor = make_actor(SAVED)
    actor.save(directory)
    loaded = make_actor(SAVED)
    loaded.load(directory)
    return all_ranks(train(loaded, 2) == train(actor, 2) and same(weights(loaded), weights(actor)))


def one_rank_fails() -> str:
    """What the ranks say, without repetitions, when one of them cannot do its part in the background."""

    def work() -> str:
        if dist.get_rank() == 2:
            raise UserError("the disk is full")
        return "done"

    background: Background[str] = Background(60)
    background.start(work)
    try:
        said = str(background.result(wait=True))
    except UserError as error:
        said = str(error)
    everyone = [said] * dist.get_world_size()
    dist.all_gather_object(everyone, said)
    return ", ".join(sorted(set(everyone)))


def shares(directory: Path) -> list[int]:
    """Bytes that the ranks have written of a checkpoint."""
    return [file.stat().st_size for file in sorted(directory.glob("*.distcp"))]


def other_model(directory: Path) -> str:
    try:
        make_actor(SAVED, family="qwen2").load(directory)
    except UserError as error:
        return str(error)
    return "nothing was raised"


def under(layout: Layout, saved: Path, directory: Path, **kind: Any) -> dict[str, Any]:
    """Load under another layout, save again and compare every tensor of weights and optimizer."""
    actor = make_actor(layout, **kind)
    actor.load(saved)
    actor.save(directory)
    dist.barrier()
    first, second = tensors(saved), tensors(directory)

    def part(name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The padding of the vocabulary belongs to the layout, not to the model."""
        return tensor[:VOCAB] if "word_embeddings" in name or "output_layer" in name else tensor

    different = [name for name in first if not torch.equal(part(name, first[name]), part(name, second[name]))]
    return {"names": sorted(first) == sorted(second), "different": different, "lr": train(actor, 1)[0]["lr"]}


def main() -> None:
    output = Path(sys.argv[1])
    root = output.parent
    results: dict[str, Any] = {
        "fp32": goes_on(root / "fp32"),
        "bf16": goes_on(root / "bf16", dtype=torch.bfloat16),
        "unsharded": goes_on(root / "unsharded", sharded=False),
        "unsharded_bf16": goes_on(root / "unsharded_bf16", dtype=torch.bfloat16, sharded=False),
        "later": goes_on(root / "later", later=True),
        "later_unsharded": goes_on(root / "later_unsharded", later=True, sharded=False),
        "one_rank_fails": one_rank_fails(),
        "untied": goes_on(root / "untied", family="llama"),
        "first": before_the_first_step(root / "first"),
        "other_model": other_model(root / "fp32"),
    }
    for layout in OTHERS:
        key = f"tp{layout[0]}-pp{layout[1]}-vpp{layout[3] or 1}"
        results[key] = under(layout, root / "fp32", root / key)
    results["shares"] = shares(root / "tp1-pp1-vpp1")
    results["experts"] = goes_on(root / "experts", SAVED_EXPERTS, family="qwen3_moe")
    for layout in OTHER_EXPERTS:
        key = f"experts-tp{layout[0]}-pp{layout[1]}-ep{layout[4]}"
        results[key] = under(layout, root / "experts", root / key, family="qwen3_moe")
    results["context"] = goes_on(root / "context", SAVED_CONTEXT)
    results["context-tp1-pp1-cp1"] = under((1, 1, False, None), root / "context", root / "context-cp1")
    if dist.get_rank() == 0:
        output.write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
