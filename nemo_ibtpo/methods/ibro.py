"""IBRO: GRPO's comparison, and the entropy of every token rewarded or punished with its advantage (arXiv 2507.18391).

loss = GRPO's - entropy_coef * sum_t A_t H_t / denominator
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from nemo_ibtpo.methods.grpo import GRPO

if TYPE_CHECKING:
    from nemo_ibtpo.losses import LossInputs, LossOutput


class IBRO(GRPO):
    """Each trajectory against its group, with a term of the loss of its own."""

    entropy_coef: Annotated[float, Field(gt=0)]
    """Weight of the entropy of every token times its advantage."""

    def loss_term(self, inputs: LossInputs) -> LossOutput:
        """See the module. ``positive - negative`` is a token's weight times its advantage."""
        total = ((inputs.positive - inputs.negative) * inputs.entropies).sum()
        return -self.entropy_coef * total / inputs.denominator, {"advantage_entropy": total.detach()}
