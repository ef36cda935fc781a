"""What all policy losses share: the KL term, the entropy bonus, and the sums behind the metrics.

With r = pi_theta / pi_old of a token, and H the entropy of the distribution it is drawn from::

    loss = sum_t [ surrogate
                   - entropy_coef * weight * H
                   + kl_coef * weight * k3 ] / denominator
    k3   = exp(log pi_reference - log pi_theta) - (log pi_reference - log pi_theta) - 1

The surrogate clips r, or what :meth:`PolicyLoss.ratio` makes of it.

k3 (paper: GRPO's) estimates KL(pi_theta || pi_reference) and is never negative.

Nothing here replaces a value that is not finite: nan shows in the loss, and ``policy_kl`` is finite only if every
ratio and its logarithm is (a ratio of 0 would pass through a surrogate unseen).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nemo_ibtpo.config.schema import LossConfig
from nemo_ibtpo.losses.inputs import LossInputs, LossOutput

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PolicyLoss(ABC):
    """Loss of a micro-batch and the sums behind its metrics.

    Attributes:
        config: clipping, and the weights of the KL term and of the entropy bonus.
        whole_runs: whether the tokens of a run (:attr:`LossInputs.run`) must come in one micro-batch.
    """

    config: LossConfig
    whole_runs: ClassVar[bool] = False

    def ratio(self, inputs: LossInputs) -> Tensor:
        """What is clipped, [N], with its gradient: r of each token."""
        return (inputs.logprobs - inputs.old_logprobs).exp()

    @abstractmethod
    def surrogate(self, inputs: LossInputs, ratio: Tensor) -> Tensor:
        """What is minimised for each token, [N], before the division; ``ratio`` is what :meth:`ratio` returns."""

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """See the module.

        Raises:
            ValueError: the KL term is asked for without reference log-probabilities.
        """
        config, denominator, weight, entropies = self.config, inputs.denominator, inputs.weight, inputs.entropies
        if config.kl_coef != 0 and inputs.reference_logprobs is None:
            raise ValueError(f"kl_coef={config.kl_coef} needs the log-probabilities of the reference policy")
        log_r, ratio = inputs.logprobs - inputs.old_logprobs, self.ratio(inputs)
        high, low = 1 + config.clip_eps_high, 1 - config.clip_eps_low

        policy_loss = self.surrogate(inputs, ratio).sum() / denominator
        loss = policy_loss
        sums = {
            "weight": weight.sum(),
            "entropy": (weight * entropies.detach()).sum(),
            "ratio": (weight * ratio).sum(),
            "policy_kl": (weight * (log_r.exp() - 1 - log_r)).sum(),
            "clip_fraction_high": (weight * ((ratio > high) & (inputs.positive > 0))).sum(),
            "clip_fraction_low": (weight * ((ratio < low) & (inputs.negative > 0))).sum(),
            "policy_loss": policy_loss,
        }
        if inputs.reference_logprobs is not None:
            reference_log_ratio = inputs.reference_logprobs - inputs.logprobs
            reference_kl = (weight * (reference_log_ratio.exp() - reference_log_ratio - 1)).sum()
            loss = loss + config.kl_coef * reference_kl / denominator
            sums["reference_kl"] = reference_kl
        if config.entropy_coef != 0:
            loss = loss - config.entropy_coef * (weight * entropies).sum() / denominator
        return loss, {name: value.detach() for name, value in sums.items()}
