"""Ranks of test_recipes.py: a small copy of each recipe that four ranks can hold takes two steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from layouts import enter
from torch import Tensor
from toy_models import VOCAB, hf_weights, random_model

from nemo_ibtpo.algorithms.advantages import compute_advantages
from nemo_ibtpo.algorithms.credit import credit_nodes, token_targets
from nemo_ibtpo.algorithms.losses import clipped_tree_loss
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.megatron.actor import Fields, MegatronActor
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.microbatches import MicroBatch, schedule
from nemo_ibtpo.tree.packing import pack_trees
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
        advantages = compute_advantages(trees, config.advantage, config.ib_score)
        credits = [
            credit_nodes(tree, advantage, config.loss.normalization, config.loss.token_weight)
            for tree, advantage in zip(trees, advantages, strict=True)
        ]
        items = []
        for tree, credit in zip(trees, credits, strict=True):
            packed = pack_trees([tree])
            targets = token_targets([credit], packed)
            fields = {"weight": targets.weight, "positive": targets.positive, "negative": targets.negative}
            items.append(MicroBatch(packed, fields))
        plan = schedule(
            items,
            max_tokens=config.actor.max_tokens_per_microbatch,
            num_ranks=actor.data_parallel_size,
            multiple_of=actor.microbatch_multiple,
        )
        batches = plan.ranks[actor.data_parallel_rank]
        old, reference = actor.logprobs(batches), actor.reference_logprobs(batches)
        batches = [
            MicroBatch(batch.packed, {**batch.fields, "old": o, "reference": r})
            for batch, o, r in zip(batches, old, reference, strict=True)
        ]
        denominator = sum(credit.denominator for credit in credits)

        def loss(logprobs: Tensor, entropies: Tensor, fields: Fields) -> tuple[Tensor, dict[str, Tensor]]:
            return clipped_tree_loss(
                logprobs,
                entropies,
                fields["old"],
                fields["reference"],
                importance_T=None,
                weight_T=fields["weight"],
                positive_T=fields["positive"],
                negative_T=fields["negative"],
                denominator=denominator,  # noqa: B023
                config=config.loss,
                advantage_entropy_coef=0.0,
            )

        actor.prepare_for_training()
        losses.append(actor.train_step(batches, loss)["loss"])
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
