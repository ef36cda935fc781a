"""``cispo``: clipped importance weights, no clipped tokens (CISPO of MiniMax-M1, arXiv 2506.13585).

    surrogate = -sg(clip(r, 1 - eps_low, 1 + eps_high)) * w * A * log pi_theta,   w * A = positive - negative

The weight is a constant (sg stops its gradient), so that a token whose ratio is far from 1 goes on learning, with a
bounded weight, where the clipped surrogate stops it. CISPO bounds the weight from above only, which is
``clip_eps_low`` close to 1 here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemo_ibtpo.losses.inputs import LossInputs
from nemo_ibtpo.losses.policy import PolicyLoss

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class CISPOLoss(PolicyLoss):
    """Policy gradient with clipped importance weights."""

    def surrogate(self, inputs: LossInputs, ratio: Tensor) -> Tensor:
        """See the module."""
        weight = ratio.detach().clamp(1 - self.config.clip_eps_low, 1 + self.config.clip_eps_high)
        return -weight * (inputs.positive - inputs.negative) * inputs.logprobs
