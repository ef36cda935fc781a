"""What a loss sees of one micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # a configuration is checked, with its method, where there is no torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossInputs:
    """The N tokens in the loss of one micro-batch; every tensor is [N], N may be 0.

    Attributes:
        logprobs: log-probabilities (nats) under the policy that is trained; they carry the gradient.
        entropies: entropies (nats) of the distributions that the tokens are drawn from; they carry a gradient.
        old_logprobs: log-probabilities under the policy before the first update of the step; no gradient.
        behaviour_logprobs: log-probabilities as the engine that sampled the tokens had them.
        reference_logprobs: under the reference policy; None without a KL term.
        run: number of the token's run, the tokens between two branches, from 0 in order.
        weight, positive, negative: sums over the trajectories through a token, see
            :class:`~nemo_ibtpo.tree.packing.Credit`; with importance weights in ``positive`` and ``negative``.
        denominator: of the whole update, over all ranks and micro-batches; > 0.
        lag: optimizer steps between the policy that sampled a token and that of ``old_logprobs``; None if it is 0 for
            all.
    """

    logprobs: Tensor
    entropies: Tensor
    old_logprobs: Tensor
    behaviour_logprobs: Tensor
    reference_logprobs: Tensor | None
    run: Tensor
    weight: Tensor
    positive: Tensor
    negative: Tensor
    denominator: float
    lag: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.denominator > 0:
            raise ValueError(f"the loss is divided by {self.denominator}; an update needs a trajectory to train on")


# -> the scalar loss, already over the denominator, and detached sums for `mean_metrics`.
LossOutput: TypeAlias = "tuple[Tensor, dict[str, Tensor]]"
Loss: TypeAlias = Callable[[LossInputs], LossOutput]
