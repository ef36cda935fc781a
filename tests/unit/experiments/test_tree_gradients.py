"""The gradient study must judge the gradient that training would take.

Held against autograd on every trajectory by itself, without packing or credit. Not exercised: Megatron's actor, which
tests/distributed/test_gradients.py holds against the same.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_models import random_model, random_tree
from transformers import PreTrainedModel

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.experiments.gradient_study.sketch import Sketch
from nemo_ibtpo.experiments.gradient_study.tree_gradients import TreeGradients
from nemo_ibtpo.methods import make_method, per_node
from nemo_ibtpo.tree.tree import Tree

TEMPERATURE = 0.7
LONGEST = 40  # tokens of a path of the trees below, prompt included, at most


def config(*words: str) -> RunConfig:
    return compose("tiny", ["model.path=nowhere", *words])


def duplicated_gradient(model: PreTrainedModel, tree: Tree, config: RunConfig) -> list[torch.Tensor]:
    """Of -sum A log pi over the tokens of all trajectories, each a sequence of its own, over their number."""
    [advantages] = make_method(config.method).of_update([tree], config.ib_score)
    assert advantages is not None
    at_node_N = per_node(tree, advantages).total
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for leaf in tree.leaves():
        path = tree.path(leaf.index)
        ids = [token for node in path for token in tree.nodes[node].tokens]
        prompt = len(tree.nodes[0].tokens)
        if "ib_coef" not in config.method:
            weight = [at_node_N[leaf.index]] * (len(ids) - prompt)
        else:
            weight = [at_node_N[node] for node in path[1:] for _ in tree.nodes[node].tokens]
        logits = model(input_ids=torch.tensor([ids])).logits[0, prompt - 1 : -1] / TEMPERATURE
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(ids[prompt:])[:, None])[:, 0]
        total = total - leaf.draws * (torch.tensor(weight) * logprobs).sum()
        tokens += leaf.draws * (len(ids) - prompt)
    return list(torch.autograd.grad(total / tokens, list(model.parameters())))


@pytest.mark.parametrize("max_tokens", [10_000, LONGEST])
def test_the_gradient_is_that_of_the_duplicated_trajectories(max_tokens: int) -> None:
    model = random_model("qwen3", dtype=torch.float64)
    sketch = Sketch(list(model.parameters()), 101, seed=0)
    gradients = TreeGradients(model, temperature=TEMPERATURE, max_tokens=max_tokens, sketch=sketch)
    configs = [config("method=grpo"), config("method.ib_coef=0.3")]
    for seed in range(3):
        tree = random_tree(np.random.default_rng(seed), rollouts=8)
        for own, measured in zip(configs, gradients(tree, configs), strict=True):
            expected = sketch(duplicated_gradient(model, tree, own)).numpy()
            assert np.linalg.norm(measured - expected) < 1e-5 * np.linalg.norm(expected)


def test_equal_rewards_give_no_gradient() -> None:
    model = random_model("qwen3")
    tree = random_tree(np.random.default_rng(0))
    for leaf in tree.leaves():
        leaf.reward = 1.0
    sketch = Sketch(list(model.parameters()), 11, seed=0)
    [zero] = TreeGradients(model, temperature=1.0, max_tokens=100, sketch=sketch)(tree, [config("method=grpo")])
    assert not zero.any()


def test_a_sketch_keeps_inner_products() -> None:
    """Of vectors whose energy lies in rows, as a gradient's does."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(128, 64), (64,), (300, 128)]
    one, two = (
        [
            torch.randn(shape, generator=generator) * torch.rand(shape[:1], generator=generator)[..., None] ** 3
            if len(shape) > 1
            else torch.randn(shape, generator=generator)
            for shape in shapes
        ]
        for _ in range(2)
    )
    other = [0.6 * a + 0.8 * b for a, b in zip(one, two, strict=True)]

    def dot(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
        return float(sum((a.double() * b.double()).sum() for a, b in zip(first, second, strict=True)))

    size = 1009
    products = []
    for seed in range(30):
        sketch = Sketch(one, size, seed)
        products.append([float(sketch(one) @ sketch(one)), float(sketch(one) @ sketch(other))])
    exact = np.array([dot(one, one), dot(one, other)])
    spread = np.std(products, axis=0) / exact[0]
    assert np.mean(products, axis=0) == pytest.approx(exact, abs=4 * exact[0] * max(spread) / 30**0.5)
    assert spread[0] < 1.5 * (2 / size) ** 0.5
    sums = Sketch(one, size, 0)
    assert torch.allclose(sums(other), 0.6 * sums(one) + 0.8 * sums(two), atol=1e-3), "linear"
    assert torch.equal(sums([None, one[1], None]), sums([torch.zeros(shapes[0]), one[1], torch.zeros(shapes[2])]))
