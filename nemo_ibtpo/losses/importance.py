"""Truncated importance sampling (TIS): a loss over an engine's samples becomes one over the actor's policy.

    importance = min(pi_old / pi_behaviour, cap)

It weighs what an advantage multiplies, token by token (our choice: not by sequence). ``pi_old`` is the policy before
the first update of the step, so that the weights are constants and carry no gradient.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_ibtpo.losses.inputs import Loss, LossInputs, LossOutput


def importance_weighted(inputs: LossInputs, cap: float) -> LossInputs:
    """The inputs with importance weights in ``positive`` and ``negative``.

    Args:
        inputs: of one micro-batch.
        cap: above which a ratio is truncated; > 0.
    """
    log_ratio_N = inputs.old_logprobs.double() - inputs.behaviour_logprobs.double()
    importance_N = log_ratio_N.clamp(max=math.log(cap)).exp().float()
    return replace(inputs, positive=importance_N * inputs.positive, negative=importance_N * inputs.negative)


def with_importance(loss: Loss, cap: float) -> Loss:
    """The loss on importance-weighted inputs; the loss itself where ``cap`` is 0."""

    def weighted(inputs: LossInputs) -> LossOutput:
        return loss(importance_weighted(inputs, cap))

    return weighted if cap else loss
