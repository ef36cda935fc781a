"""CISPO by hand: every token keeps its gradient, with a bounded weight."""

from __future__ import annotations

import math

import pytest
import torch
from loss_settings import loss_config

from nemo_ibtpo.losses import CISPOLoss, ClippedLoss, LossInputs, make_loss

CONFIG = loss_config("cispo", clip_eps_high=0.5)


@pytest.mark.parametrize(
    ("ratio", "positive", "negative", "weight"),
    [
        (1.2, 2.0, 0.0, 1.2),
        (4.0, 2.0, 0.0, 1.5),  # the clipped surrogate would stop this token
        (4.0, 0.0, 3.0, 1.5),
        (0.1, 0.0, 3.0, 0.8),  # and this one
        (1.2, 2.0, 3.0, 1.2),  # trajectories of both signs through the token
    ],
)
def test_one_token_by_hand(ratio: float, positive: float, negative: float, weight: float) -> None:
    loss_function, old = make_loss(CONFIG), -1.0
    assert isinstance(loss_function, CISPOLoss)
    current = torch.tensor([old + math.log(ratio)], dtype=torch.float64, requires_grad=True)

    def one(value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.float64)

    inputs = LossInputs(
        logprobs=current,
        entropies=torch.zeros(1),
        old_logprobs=one(old),
        behaviour_logprobs=one(old),
        reference_logprobs=None,
        run=torch.zeros(1, dtype=torch.int64),
        weight=one(4.0),
        positive=one(positive),
        negative=one(negative),
        denominator=10.0,
    )
    loss, _ = loss_function(inputs)
    assert loss.item() == pytest.approx(-weight * (positive - negative) * current.item() / 10)
    loss.backward()
    assert current.grad.item() == pytest.approx(-weight * (positive - negative) / 10)


def test_on_policy_its_gradient_is_that_of_the_clipped_surrogate() -> None:
    logprobs = torch.tensor([-0.5, -2.0, -1.0], dtype=torch.float64, requires_grad=True)
    values = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    inputs = LossInputs(
        logprobs=logprobs,
        entropies=torch.zeros(3),
        old_logprobs=logprobs.detach(),
        behaviour_logprobs=logprobs.detach(),
        reference_logprobs=None,
        run=torch.arange(3),
        weight=torch.ones(3),
        positive=values,
        negative=values.flip(0),
        denominator=3.0,
    )
    gradients = [torch.autograd.grad(loss(CONFIG)(inputs)[0], logprobs)[0] for loss in (CISPOLoss, ClippedLoss)]
    torch.testing.assert_close(gradients[0], gradients[1])
