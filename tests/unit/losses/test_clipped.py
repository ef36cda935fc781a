"""The loss over unique tokens must be the loss over all trajectories, or the tree trains something else.

Checked with autograd in double precision: the reference below writes the trajectories out one after another and
clips each in the textbook way. Not exercised: log-probabilities of a model (tests/unit/megatron); here they are
free parameters, one per unique token, which is what sharing a prefix means.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from advantages_of import grpo, ibtpo
from hypothesis import given
from hypothesis import strategies as st
from loss_settings import loss_config
from packing_oracles import n_paths_of, nodes_of, pack_trees, tree_slices, unpack_paths
from strategies import IB, hand_tree, mixed_trees

from nemo_ibtpo.losses import ClippedLoss, LossInputs, mean_metrics, with_importance
from nemo_ibtpo.methods import StepAdvantages
from nemo_ibtpo.methods.credit import credit_nodes
from nemo_ibtpo.methods.ibro import IBRO
from nemo_ibtpo.tree.packing import PackedBatch
from nemo_ibtpo.tree.tree import Tree

CONFIG = loss_config("clipped", kl_coef=0.05)
ADVANTAGES = {"ibtpo": lambda tree: ibtpo(tree, 0.1, IB), "grpo": grpo}


def random_logprobs(packed: PackedBatch, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Current, old and reference log-probabilities in float64; about half of the ratios are clipped."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, len(packed))
    current, old, reference = -2 + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return current.requires_grad_(), old, reference


def tree_loss(
    forest, credits, current, old, reference, config, piece=slice(None), *, entropies=None, behaviour=None, ibro=0.0
):
    """The loss of packed trees, or of the tokens in a storage range of them."""
    packed = pack_trees(forest, credits)
    entropies = torch.zeros(len(packed), dtype=torch.float64) if entropies is None else entropies
    in_loss = np.arange(len(packed))[piece][packed.in_loss[piece]]
    inputs = LossInputs(
        logprobs=current[in_loss],
        entropies=entropies[in_loss],
        old_logprobs=old[in_loss],
        behaviour_logprobs=(old if behaviour is None else behaviour)[in_loss],
        reference_logprobs=None if reference is None else reference[in_loss],
        run=torch.arange(len(in_loss)),
        weight=torch.from_numpy(packed.weight)[in_loss],
        positive=torch.from_numpy(packed.positive)[in_loss],
        negative=torch.from_numpy(packed.negative)[in_loss],
        denominator=sum(credit.denominator for credit in credits),
    )
    loss = ClippedLoss(config)
    loss = IBRO(zero_variance="drop", entropy_coef=ibro).with_term(loss) if ibro else loss
    return with_importance(loss, config.tis_cap)(inputs)


def duplicated_loss(forest, advantages, current, old, reference, config, *, entropies=None, behaviour=None, ibro=0.0):
    """Every trajectory on its own: -v min(r A, clip(r) A) - ibro v A H - bonus H + kl_coef k3, as the config says."""
    first = np.cumsum([0] + [len(tree.nodes) for tree in forest])
    packed, node_T, n_paths_T = pack_trees(forest), nodes_of(forest), n_paths_of(forest)
    begins = [piece.start for piece in tree_slices(packed)]
    losses, lengths, groups = [], [], []
    for path in unpack_paths(packed):
        group = begins.index(path[0])
        path = path[packed.sampled[path]]
        nodes = node_T[path] - first[group]
        given_advantages = advantages[group]
        if isinstance(given_advantages, StepAdvantages):
            a = torch.from_numpy(given_advantages.total[nodes])
        else:
            a = torch.full((len(path),), given_advantages.at_leaf[nodes[-1]], dtype=torch.float64)
        r = (current[path] - old[path]).exp()
        clipped = r.clamp(1 - config.clip_eps_low, 1 + config.clip_eps_high)
        k3 = (reference[path] - current[path]).exp() - (reference[path] - current[path]) - 1
        policy, other = -torch.minimum(r * a, clipped * a), config.kl_coef * k3
        if entropies is not None:
            policy = policy - ibro * a * entropies[path]
            other = other - config.entropy_coef * entropies[path]
        if behaviour is not None:  # truncated importance sampling
            policy = policy * torch.minimum((old[path] - behaviour[path]).exp(), torch.tensor(config.tis_cap))
        per_token = policy + other
        for _ in range(n_paths_T[path[-1]]):
            losses.append(per_token)
            lengths.append(len(path))
            groups.append(group)
    if config.normalization == "token_mean":
        return torch.cat(losses).sum() / sum(lengths)
    per_group = [
        torch.stack([loss.mean() for loss, g in zip(losses, groups, strict=True) if g == group]).mean()
        for group in range(len(forest))
    ]
    return torch.stack(per_group).mean()


@pytest.mark.parametrize("normalization", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("name", ADVANTAGES)
def test_unique_tokens_train_what_duplicated_trajectories_train(name: str, normalization: str) -> None:
    config = replace(CONFIG, normalization=normalization)

    @given(st.lists(mixed_trees(), min_size=1, max_size=2), st.integers(0, 1000))
    def check(forest: list[Tree], seed: int) -> None:
        packed = pack_trees(forest)
        advantages = [ADVANTAGES[name](tree) for tree in forest]
        credits = [
            credit_nodes(tree, a, normalization, "trajectories") for tree, a in zip(forest, advantages, strict=True)
        ]
        current, old, reference = random_logprobs(packed, seed)
        loss, _ = tree_loss(forest, credits, current, old, reference, config)
        expected = duplicated_loss(forest, advantages, current, old, reference, config)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
        (gradient,) = torch.autograd.grad(loss, current)
        (expected_gradient,) = torch.autograd.grad(expected, current)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
        assert gradient[packed.in_loss].abs().max() > 1e-3  # the comparison is not one of zeros

    check()


@pytest.mark.parametrize("normalization", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("name", ADVANTAGES)
def test_entropies_and_importance_weights_on_unique_tokens(name: str, normalization: str) -> None:
    """Against the same formula on duplicated trajectories, with gradients into log-probabilities and entropies."""
    config = replace(CONFIG, normalization=normalization, entropy_coef=0.02, tis_cap=1.2)

    @given(mixed_trees(), st.integers(0, 1000))
    def check(tree: Tree, seed: int) -> None:
        packed, advantages = pack_trees([tree]), ADVANTAGES[name](tree)
        credits = [credit_nodes(tree, advantages, normalization, "trajectories")]
        current, old, reference = random_logprobs(packed, seed)
        entropies, _, behaviour = random_logprobs(packed, seed + 1)
        extra = {"entropies": entropies, "behaviour": behaviour.detach(), "ibro": 0.3}
        loss, _ = tree_loss([tree], credits, current, old, reference, config, **extra)
        expected = duplicated_loss([tree], [advantages], current, old, reference, config, **extra)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
        found = torch.autograd.grad(loss, (current, entropies))
        for gradient, wanted in zip(found, torch.autograd.grad(expected, (current, entropies)), strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)
            assert gradient.abs().max() > 1e-4

    check()


def test_unused_entropies_get_no_gradient() -> None:
    """They would double the cost of the backward pass over the vocabulary."""
    tree = hand_tree()
    packed = pack_trees([tree])
    credits = [credit_nodes(tree, grpo(tree), "token_mean", "trajectories")]
    current, old, reference = random_logprobs(packed, 0)
    entropies = torch.ones(len(packed), dtype=torch.float64, requires_grad=True)
    loss, sums = tree_loss([tree], credits, current, old, reference, CONFIG, entropies=entropies)
    loss.backward()
    assert entropies.grad is None
    assert mean_metrics({name: value.item() for name, value in sums.items()})["entropy"] == 1
    assert "advantage_entropy" not in sums


def test_shared_tokens_clip_each_trajectory_on_its_own_side() -> None:
    """Negative control: with the mean advantage instead of two sums, a branched tree trains something else."""
    tree = hand_tree()
    packed = pack_trees([tree])
    credit = credit_nodes(tree, grpo(tree), "token_mean", "trajectories")
    mean = (credit.positive - credit.negative) / np.maximum(credit.weight, 1)
    averaged = credit_nodes(tree, StepAdvantages(mean, mean, mean), "token_mean", "trajectories")
    old = torch.full((len(packed),), -1.0, dtype=torch.float64)
    losses = [
        tree_loss([tree], [c], old + math.log(2), old, None, replace(CONFIG, kl_coef=0.0))[0].item()
        for c in (credit, averaged)
    ]
    # r = 2 is clipped at 1.28 for the two right trajectories through a, not for the wrong one: a's two tokens
    # have -2 * 0.6 * 1.28 + 0.4 * 2 against 3 * -(0.8 / 3) * 1.28, over std sqrt(0.3) and 12 tokens.
    difference = 2 * ((-1.2 * 1.28 + 0.8) - (-0.8 * 1.28)) / math.sqrt(0.3) / 12
    assert losses[0] - losses[1] == pytest.approx(difference, rel=1e-5)
    assert abs(difference) > 0.01


@pytest.mark.parametrize(
    ("ratio", "positive", "negative", "surrogate", "slope"),
    [
        (1.1, 2.0, 0.0, -2 * 1.1, -2),
        (1.5, 2.0, 0.0, -2 * 1.28, 0),  # clipped above
        (0.5, 2.0, 0.0, -2 * 0.5, -2),  # the lower clip does not hold a positive advantage
        (0.9, 0.0, 3.0, 3 * 0.9, 3),
        (0.5, 0.0, 3.0, 3 * 0.8, 0),  # clipped below
        (1.5, 0.0, 3.0, 3 * 1.5, 3),  # nor the upper one a negative one
        (1.5, 2.0, 3.0, -2 * 1.28 + 3 * 1.5, 3),  # both kinds of trajectories through one token
    ],
)
def test_one_token_by_hand(ratio, positive, negative, surrogate, slope) -> None:
    old, reference, weight, denominator = -1.0, -1.3, 4.0, 10.0
    current = torch.tensor([old + math.log(ratio)], dtype=torch.float64, requires_grad=True)
    values = {
        "old_logprobs": old,
        "behaviour_logprobs": old,
        "reference_logprobs": reference,
        "weight": weight,
        "positive": positive,
        "negative": negative,
    }
    loss, _ = ClippedLoss(CONFIG)(
        LossInputs(
            logprobs=current,
            entropies=torch.zeros(1),
            run=torch.zeros(1, dtype=torch.int64),
            **{name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()},
            denominator=denominator,
        )
    )
    d = reference - current.item()
    k3 = math.exp(d) - d - 1
    assert loss.item() == pytest.approx((surrogate + 0.05 * weight * k3) / denominator)
    loss.backward()
    # d r / d log pi = r, d k3 / d log pi = 1 - exp(d)
    expected = (slope * ratio + 0.05 * weight * (1 - math.exp(d))) / denominator
    assert current.grad.item() == pytest.approx(expected)


def test_metrics_by_hand() -> None:
    ratios = torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    old = torch.full((5,), -1.0, dtype=torch.float64)
    _, sums = ClippedLoss(CONFIG)(
        LossInputs(
            logprobs=old + ratios.log(),
            entropies=torch.arange(5, dtype=torch.float64),
            old_logprobs=old,
            behaviour_logprobs=old,
            reference_logprobs=old,
            run=torch.arange(5),
            weight=weight,
            positive=weight * advantage.clamp(min=0),
            negative=weight * (-advantage).clamp(min=0),
            denominator=30.0,
        )
    )
    metrics = mean_metrics({name: value.item() for name, value in sums.items()})
    r, w = ratios.numpy(), weight.numpy()
    assert metrics == pytest.approx(
        {
            "ratio": (w * r).sum() / 15,
            "entropy": (0 + 2 + 2 * 3 + 3 * 4 + 4 * 5) / 15,
            "policy_kl": (w * (r - 1 - np.log(r))).sum() / 15,
            "reference_kl": (w * (1 / r - 1 + np.log(r))).sum() / 15,  # the reference is the old policy here
            "clip_fraction_high": 2 / 15,  # only the second: above with a positive advantage
            "clip_fraction_low": 5 / 15,  # only the fifth
            "policy_loss": (-(1 * 1.0 + 2 * 1.28 + 3 * 0.5) + 4 * 1.5 + 5 * 0.8) / 30,
        }
    )


@given(st.lists(mixed_trees(), min_size=2, max_size=3), st.integers(0, 1000))
def test_loss_gradient_and_metrics_add_up_over_micro_batches(forest: list[Tree], seed: int) -> None:
    packed = pack_trees(forest)
    credits = [credit_nodes(tree, ibtpo(tree, 0.1, IB), "token_mean", "trajectories") for tree in forest]
    current, old, reference = random_logprobs(packed, seed)
    whole, whole_sums = tree_loss(forest, credits, current, old, reference, CONFIG)
    parts = [tree_loss(forest, credits, current, old, reference, CONFIG, piece) for piece in tree_slices(packed)]
    together = sum(loss for loss, _ in parts)
    torch.testing.assert_close(together, whole)
    (gradient,) = torch.autograd.grad(together, current)
    (expected,) = torch.autograd.grad(whole, current)
    torch.testing.assert_close(gradient, expected)
    for name, value in whole_sums.items():
        torch.testing.assert_close(sum(sums[name] for _, sums in parts), value, rtol=1e-6, atol=1e-9)
    assert not any(value.requires_grad for value in whole_sums.values())


def test_on_policy_the_gradient_is_the_advantage() -> None:
    """r = 1 and no KL: the gradient of each token is minus its weighted advantage, the policy gradient."""
    tree = hand_tree()
    packed = pack_trees([tree])
    credit = credit_nodes(tree, ibtpo(tree, 0.1, IB), "token_mean", "trajectories")
    current, _, _ = random_logprobs(packed, 0)
    config = replace(CONFIG, kl_coef=0.0)
    loss, sums = tree_loss([tree], [credit], current, current.detach(), None, config)
    loss.backward()
    advantage = (ibtpo(tree, 0.1, IB).total * tree.n_paths())[nodes_of([tree])] * packed.in_loss
    np.testing.assert_allclose(current.grad.numpy(), -advantage / 12, rtol=1e-6)
    metrics = mean_metrics({name: value.item() for name, value in sums.items()})
    assert "reference_kl" not in metrics
    assert (metrics["ratio"], metrics["clip_fraction_high"], metrics["clip_fraction_low"]) == (1, 0, 0)
    assert metrics["policy_kl"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows(broken: float) -> None:
    tree = hand_tree()
    packed = pack_trees([tree])
    credits = [credit_nodes(tree, grpo(tree), "token_mean", "trajectories")]
    _, old, reference = random_logprobs(packed, 0)
    for token in (2, 8):
        current = old.clone()
        current[token] = broken
        loss, _ = tree_loss([tree], credits, current, old, reference, CONFIG)
        assert not math.isfinite(loss.item())
        _, sums = tree_loss([tree], credits, current, old, None, replace(CONFIG, kl_coef=0.0))
        assert not math.isfinite(sums["policy_kl"].item())


def test_a_micro_batch_without_tokens_in_the_loss_still_has_a_gradient() -> None:
    tree = hand_tree()
    packed = pack_trees([tree])
    credits = [credit_nodes(tree, grpo(tree), "token_mean", "trajectories")]
    current, old, reference = random_logprobs(packed, 0)
    loss, sums = tree_loss([tree], credits, current, old, reference, CONFIG, slice(0, 2))
    loss.backward()
    assert loss.item() == 0
    assert not current.grad.any()
    assert all(value == 0 for value in sums.values())


def test_what_is_missing_is_named() -> None:
    tree = hand_tree()
    packed = pack_trees([tree])
    credits = [credit_nodes(tree, grpo(tree), "token_mean", "trajectories")]
    current, old, _ = random_logprobs(packed, 0)
    with pytest.raises(ValueError, match=r"kl_coef=0.05 needs the log-probabilities of the reference policy"):
        tree_loss([tree], credits, current, old, None, CONFIG)
    with pytest.raises(ValueError, match=r"divided by 0.0; an update needs a trajectory"):
        nothing = [replace(credits[0], denominator=0.0)]
        tree_loss([tree], nothing, current, old, current.detach(), CONFIG)
