"""What the benchmarks work on: synthetic trees of stated shapes, grown by the real branching strategies.

Token ids and rewards are random, and so is where a trajectory ends: its length is uniform within a quarter of the
shape's. Every other setting is the default in ``conf/``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen3Config

from nemo_ibtpo.config.schema import (
    IBScoreConfig,
    LossConfig,
    RolloutConfig,
    SamplerConfig,
    TransformersEngineConfig,
    VLLMEngineConfig,
)
from nemo_ibtpo.tree.branching import BranchingStrategy, make_strategy
from nemo_ibtpo.tree.packing import IntArray, PackedBatch
from nemo_ibtpo.tree.tree import Step, Tree

_CONF = Path(__file__).resolve().parent.parent / "conf"


def defaults(section: str) -> dict[str, Any]:
    """A section of ``conf/config.yaml``, or a choice of a group such as ``sampler/ib``."""
    group = _CONF / f"{section}.yaml"
    values: dict[str, Any] = (
        yaml.safe_load(group.read_text())
        if group.exists()
        else yaml.safe_load((_CONF / "config.yaml").read_text())[section]
    )
    return values


IB_SCORE = IBScoreConfig(**defaults("ib_score"))
METHOD = defaults("method/ibtpo")["method"]
LOSS = LossConfig(**defaults("loss/clipped"))

SMALL_SHAPE = Qwen3Config(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)


def rollout_config(*, kv_cache_gib: float, **changes: Any) -> RolloutConfig:
    """The defaults of ``rollout=vllm`` but for the memory of keys and values, and the changes."""
    values = defaults("rollout/vllm")
    vllm = VLLMEngineConfig(**values.pop("vllm") | {"kv_cache_gib": kv_cache_gib})
    transformers = TransformersEngineConfig(**values.pop("transformers"))
    return RolloutConfig(**values | changes, vllm=vllm, transformers=transformers)


def model_card(name: str) -> Path:
    """The configuration of a recipe's model.

    Raises:
        SystemExit: there is none of that name.
    """
    cards = _CONF.parent / "recipes" / "models"
    if not (path := cards / f"{name}.json").is_file():
        raise SystemExit(f"--card {name}: there is {', '.join(sorted(card.stem for card in cards.glob('*.json')))}")
    return path


def write_random_model(shape: PretrainedConfig, directory: Path) -> None:
    """Random weights, in bf16 where they are made on a GPU."""
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    with torch.device("cuda" if on_gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16 if on_gpu else torch.float32)
    model.save_pretrained(directory)
    del model
    if on_gpu:
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Shape:
    """The size of a tree.

    Attributes:
        growth: (B0, L, K, B), see ``SamplerConfig``.
        prompt_tokens, path_tokens, step_tokens: of the prompt, of a response on average, of a step on average.
    """

    growth: tuple[int, int, int, int]
    prompt_tokens: int
    path_tokens: int
    step_tokens: int

    def strategy(self, name: Literal["ib", "random"]) -> BranchingStrategy:
        """The branching strategy of that name at this size."""
        initial_rollouts, rounds, branch_points, rollouts_per_branch = self.growth
        sampler = replace(
            SamplerConfig(**defaults("sampler/ib")),
            name=name,
            initial_rollouts=initial_rollouts,
            rounds=rounds,
            branch_points=branch_points,
            rollouts_per_branch=rollouts_per_branch,
            min_new_tokens=1,
        )
        return make_strategy(sampler, IB_SCORE, max_new_tokens=2 * self.path_tokens)


SHAPES = {
    "wide": Shape((8, 2, 12, 2), prompt_tokens=100, path_tokens=250, step_tokens=25),
    "deep": Shape((1, 4, 1, 1), prompt_tokens=100, path_tokens=3000, step_tokens=50),
    "paper": Shape((4, 9, 1, 1), prompt_tokens=100, path_tokens=1000, step_tokens=50),
}


def grow_tree(
    shape: Shape, strategy: BranchingStrategy, rng: np.random.Generator, *, prompt_id: str, vocab_size: int
) -> Tree:
    """A tree as the strategy grows it, from random continuations and alternating rewards."""
    tree = Tree(prompt_id, rng.integers(vocab_size, size=shape.prompt_tokens).tolist())
    grown = round = 0
    while points := strategy.next_round(tree, round, rng):
        for node in (point.node for point in points for _ in range(point.rollouts)):
            length = int(shape.path_tokens * rng.uniform(0.75, 1.25)) - tree.depth_tokens(node)
            leaf = tree.insert(node, _steps(max(length, 1), shape.step_tokens, rng, vocab_size), "eos", round)
            tree.set_reward(leaf, float(grown % 2))
            grown += 1
        round += 1
    return tree


def paths(batch: PackedBatch) -> list[IntArray]:
    """Storage indices of the tokens on each root-to-leaf path of packed trees; a path taken twice appears once."""
    found = []
    for last in np.flatnonzero(batch.subtree_end == np.arange(len(batch)) + 1):  # nothing follows it on its path
        path = [int(last)]
        while (before := int(batch.predecessor[path[-1]])) >= 0:
            path.append(before)
        found.append(np.array(path[::-1]))
    return found


def _steps(length: int, step_tokens: int, rng: np.random.Generator, vocab_size: int) -> list[Step]:
    cuts = rng.choice(length, size=min(length // step_tokens, length - 1), replace=False)
    bounds = [0, *sorted(set(cuts.tolist()) - {0}), length]
    tokens = rng.integers(vocab_size, size=length).tolist()
    logprobs = (-rng.exponential(0.3, size=length)).astype(np.float32).tolist()  # engines return float32
    return [(tokens[a:b], logprobs[a:b]) for a, b in pairwise(bounds)]
