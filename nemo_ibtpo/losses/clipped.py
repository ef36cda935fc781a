"""``clipped``: the surrogate of PPO and GRPO over the unique tokens of packed trees.

    surrogate = -positive * min(r, 1 + eps_high) + negative * max(r, 1 - eps_low)

with the sums of :class:`~nemo_ibtpo.tree.packing.Credit`. For a token with one advantage A and weight w, ``positive``
is w * max(A, 0) and ``negative`` w * max(-A, 0). If A >= 0, ``min(r A, clip(r) A) = A * min(r, 1 + eps_high)``,
because the lower clip can only raise r A; if A < 0, it is ``A * max(r, 1 - eps_low)`` in the same way. So this is
``-w * min(r A, clip(r) A)``, the usual surrogate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemo_ibtpo.losses.inputs import LossInputs
from nemo_ibtpo.losses.policy import PolicyLoss

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ClippedLoss(PolicyLoss):
    """The clipped surrogate."""

    def surrogate(self, inputs: LossInputs, ratio: Tensor) -> Tensor:
        """See the module."""
        high, low = 1 + self.config.clip_eps_high, 1 - self.config.clip_eps_low
        return inputs.negative * ratio.clamp(min=low) - inputs.positive * ratio.clamp(max=high)
