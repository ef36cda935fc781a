"""Ranks of test_recipes.py: a small copy of each recipe that four ranks can hold takes two steps."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from large_recipes import layout as recipe_layout
from layouts import enter
from toy_models import VOCAB, hf_weights, random_model

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.losses import make_loss
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.methods import make_method
from nemo_ibtpo.methods.credit import credit_nodes
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.microbatches import pack_microbatches, schedule
from nemo_ibtpo.tree.packing import layout
from nemo_ibtpo.tree.tree import Tree

FAMILY = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
"""Families of the toy models by architecture."""


def grow(config: RunConfig, rng: np.random.Generator) -> Tree:
    """A tree that the recipe's sampler grows from random steps and rewards."""
    tree = Tree("p", rng.integers(0, VOCAB, 4).tolist())
    strategy = make_strategy(config.sampler, config.ib_score, config.rollout.max_new_tokens)
    round = rewarded = 0
    while points := strategy.next_round(tree, round, rng):
        for node in (point.node for point in points for _ in range(point.rollouts)):
            steps = []
            for length in rng.integers(2, 5, size=3):
                steps.append((rng.integers(0, VOCAB, length).tolist(), (-rng.random(length)).tolist()))
            leaf = tree.insert(node, steps, "eos", round=round)
            if tree.nodes[leaf].reward is None:
                tree.set_reward(leaf, float(rewarded % 2))
                rewarded += 1
        round += 1
    return tree


def train_two_steps(name: str, architecture: str) -> dict[str, Any]:
    overrides = ["actor.device=cpu", "actor.max_tokens_per_microbatch=160", "optimizer.lr=1e-3", "model.dtype=fp32"]
    if recipe_layout(name).context > 1:
        overrides.append("actor.context_parallel_size=2")
    config = compose(name, overrides)
    model = random_model(FAMILY[architecture], key_value_heads=4)  # four ranks can share them
    actor = MegatronActor(
        architecture_from_config(model.config),
        hf_weights(model),
        actor=config.actor,
        optimizer=config.optimizer,
        total_updates=2,
        dtype=torch.float32,
        temperature=config.rollout.temperature,
        keep_reference=True,
        context=enter(config.actor),
    )
    before = {key: tensor.clone() for key, tensor in actor.named_weights()}
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(2):
        trees = [grow(config, rng) for _ in range(3)]
        advantages = make_method(config.method).of_update(trees, config.ib_score)
        credits = [
            credit_nodes(tree, advantage, config.loss.normalization, config.loss.token_weight)
            for tree, advantage in zip(trees, advantages, strict=True)
        ]
        plan = schedule(
            map(layout, trees),
            max_tokens=config.actor.max_tokens_per_microbatch,
            num_ranks=actor.data_parallel_size,
            multiple_of=actor.microbatch_multiple,
            attention_weight=actor.attention_weight,
        )
        batches = pack_microbatches(plan.ranks[actor.data_parallel_rank], trees, credits)
        old, reference = actor.logprobs(batches), actor.reference_logprobs(batches)
        batches = [
            replace(batch, old_logprobs=o, reference_logprobs=r)
            for batch, o, r in zip(batches, old, reference, strict=True)
        ]
        denominator = sum(credit.denominator for credit in credits)
        actor.prepare_for_training()
        losses.append(actor.train_step(batches, make_loss(config.loss), denominator)["loss"])
        actor.finish_training()
    moved = sum(not torch.equal(tensor, before[key]) for key, tensor in actor.named_weights())
    return {"losses": losses, "moved": moved / len(before), "trajectories": trees[0].num_trajectories}


def main() -> None:
    architectures = json.loads(sys.argv[2])
    results = {name: train_two_steps(name, architecture) for name, architecture in architectures.items()}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
