"""GSPO by hand: one ratio for the tokens between two branches, and a cut that leaves them together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_settings import loss_config
from strategies import add, hand_tree, step, trees

from nemo_ibtpo.losses import GSPOLoss, LossInputs, make_loss
from nemo_ibtpo.tree.microbatches import assemble, cut
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.packing import layout, pack_tree
from nemo_ibtpo.tree.tree import Tree

CONFIG = loss_config("gspo", clip_eps_low=0.1, clip_eps_high=0.2, normalization="sequence_mean")


def test_three_runs_by_hand() -> None:
    """Ratios 1.44 and 1 (their run: 1.2, not clipped), 2 and 2 (clipped), 0.5 alone (clipped from below)."""
    old = torch.tensor([-1.0, -2.0, -3.0, -1.0, -0.5], dtype=torch.float64)
    ratios = torch.tensor([1.44, 1.0, 2.0, 2.0, 0.5], dtype=torch.float64)
    logprobs = (old + (ratios * 0.999).log()).requires_grad_()
    loss_function = make_loss(CONFIG)
    assert isinstance(loss_function, GSPOLoss)
    loss, sums = loss_function(
        LossInputs(
            logprobs=logprobs,
            entropies=torch.zeros(5),
            old_logprobs=old,
            behaviour_logprobs=old,
            reference_logprobs=None,
            run=torch.tensor([0, 0, 1, 1, 2]),
            weight=torch.ones(5, dtype=torch.float64),
            positive=torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0], dtype=torch.float64),
            negative=torch.tensor([0.0, 0.5, 0.0, 0.0, 4.0], dtype=torch.float64),
            denominator=10.0,
        )
    )
    s = 1.2 * 0.999
    assert loss.item() == pytest.approx((-(3 + 1 - 0.5) * s - 4 * 1.2 + 4 * 0.9) / 10)
    loss.backward()
    # Each token has the gradient of its own log-probability, times the ratio of its run.
    np.testing.assert_allclose(logprobs.grad, np.array([-3 * s, -0.5 * s, 0, 0, 0]) / 10)
    assert sums["clip_fraction_high"] == 2
    assert sums["ratio"].item() == pytest.approx(2 * s + 4 * 0.999 + 0.5 * 0.999)


def test_with_one_advantage_a_run_its_gradient_is_that_of_the_sequences_ratio() -> None:
    old = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    logprobs = torch.tensor([-1.1, -1.8, -2.95], dtype=torch.float64, requires_grad=True)
    ones = torch.ones(3, dtype=torch.float64)
    inputs = LossInputs(
        logprobs, ones, old, old, None, torch.zeros(3, dtype=torch.int64), ones, 2 * ones, 0 * ones, 1.0
    )
    [own] = torch.autograd.grad(GSPOLoss(CONFIG)(inputs)[0], logprobs)
    sequence = -3 * 2 * (logprobs - old).mean().exp()  # GSPO's objective, weighted with the length as the tokens are
    [expected] = torch.autograd.grad(sequence, logprobs)
    torch.testing.assert_close(own, expected)


def test_runs_of_a_tree_by_hand() -> None:
    # Prompt | a (3 trajectories), b, c, e below it, then d.
    packed = pack_tree(hand_tree())
    lengths = np.unique(packed.runs, return_counts=True)[1]
    assert lengths.tolist() == [len(hand_tree().nodes[node].tokens) for node in (1, 2, 3, 5, 4)]
    # A chain of two steps is one run, behind the prompt's.
    chain = Tree("chain", (1, 2))
    add(chain, ROOT, [step([3, 4], 0.5), step([5], 0.5)], 1.0)
    assert layout(chain).run_start.tolist() == [True, False, True, False, False]
    assert pack_tree(chain).runs.tolist() == [0, 0, 0]


@given(trees(), st.integers(1, 60))
def test_no_run_is_cut(tree: Tree, budget: int) -> None:
    laid = layout(tree)
    budget = max(budget, int(laid.depth.max()) + 1)
    whole = pack_tree(tree)
    names = replace(whole, old_logprobs=np.arange(len(laid), dtype=np.float32))
    seen: list[int] = []
    for piece in cut(0, laid, budget, whole_runs=True):
        assert piece.tokens <= budget
        assert laid.run_start[piece.start]
        batch = assemble([piece], {0: names})
        seen += batch.old_logprobs[batch.in_loss].astype(int).tolist()
        own = whole.runs[np.searchsorted(np.flatnonzero(whole.in_loss), batch.old_logprobs[batch.in_loss])]
        np.testing.assert_array_equal(batch.runs, own - own[:1])  # the same tokens go together as in the whole tree
    assert seen == np.flatnonzero(whole.in_loss).tolist()
