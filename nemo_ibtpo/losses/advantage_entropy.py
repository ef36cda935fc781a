"""IBRO's term: the entropy of every token times its advantage (arXiv 2507.18391).

    term = -coef * sum_t (positive - negative) * H / denominator

``positive - negative`` is a token's weight times its advantage, so the term is IBRO's sum_t A_t H_t.
"""

from __future__ import annotations

from nemo_ibtpo.losses.inputs import LossInputs, LossOutput


def advantage_entropy_term(inputs: LossInputs, coef: float) -> LossOutput:
    """IBRO's term of the loss, and the sum behind its metric."""
    total = ((inputs.positive - inputs.negative) * inputs.entropies).sum()
    return -coef * total / inputs.denominator, {"advantage_entropy": total.detach()}
