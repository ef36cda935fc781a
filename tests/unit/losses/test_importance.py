"""What a sample weighs where the engine that drew it and the actor disagree; by hand."""

from __future__ import annotations

import torch

from nemo_ibtpo.losses import LossInputs, importance_weighted


def inputs(ratios: list[float]) -> LossInputs:
    """``ratios`` are pi_old / pi_behaviour."""
    ones = torch.ones(len(ratios))
    behaviour = -ones
    return LossInputs(
        logprobs=behaviour,
        entropies=ones,
        old_logprobs=behaviour + torch.tensor(ratios).log(),
        behaviour_logprobs=behaviour,
        reference_logprobs=None,
        run=torch.arange(len(ratios)),
        weight=ones,
        positive=ones,
        negative=2 * ones,
        denominator=1.0,
    )


def test_importance_weights_are_truncated_above() -> None:
    given = inputs([1.0, 0.5, 3.0, 2.0, 0.25, 1e30])
    weighted = importance_weighted(given, 2.5)
    torch.testing.assert_close(weighted.positive, torch.tensor([1, 0.5, 2.5, 2, 0.25, 2.5]))
    assert torch.equal(weighted.negative, 2 * weighted.positive)
    assert torch.equal(weighted.weight, given.weight)


def test_they_carry_no_gradient() -> None:
    given = inputs([0.5, 3.0])
    logprobs = given.logprobs.clone().requires_grad_()
    own = LossInputs(**{f: getattr(given, f) for f in given.__dataclass_fields__} | {"logprobs": logprobs})
    assert not importance_weighted(own, 2.5).positive.requires_grad
