"""The clipped policy loss over the unique tokens of packed trees.

With r = pi_theta / pi_old, H the entropy of the distribution a token is drawn from, and the sums ``weight``,
``positive``, ``negative`` of :class:`~nemo_ibtpo.tree.packing.Credit`::

    loss = sum_t [ -positive * min(r, 1 + eps_high) + negative * max(r, 1 - eps_low)
                   - entropy_coef * weight * H
                   + kl_coef * weight * k3 ] / denominator
    k3   = exp(log pi_reference - log pi_theta) - (log pi_reference - log pi_theta) - 1

For a token with one advantage A and weight w, ``positive`` is w * max(A, 0) and ``negative`` w * max(-A, 0). If
A >= 0, ``min(r A, clip(r) A) = A * min(r, 1 + eps_high)``, because the lower clip can only raise r A; if A < 0,
it is ``A * max(r, 1 - eps_low)`` in the same way. So the first line is ``-w * min(r A, clip(r) A)``, the usual
surrogate; k3 (paper: GRPO's) estimates KL(pi_theta || pi_reference) and is never negative.

Nothing here replaces a value that is not finite: nan shows in the loss, and ``policy_kl`` is finite only if every
ratio and its logarithm is (a ratio of 0 would pass through the surrogate unseen).
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_ibtpo.config.schema import LossConfig
from nemo_ibtpo.losses.inputs import LossInputs, LossOutput


@dataclass(frozen=True, slots=True)
class ClippedLoss:
    """Loss of a micro-batch and the sums behind its metrics.

    Attributes:
        config: clipping, and the weights of the KL term and of the entropy bonus.
    """

    config: LossConfig

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """See the module.

        Raises:
            ValueError: the KL term is asked for without reference log-probabilities.
        """
        config, denominator, weight = self.config, inputs.denominator, inputs.weight
        positive, negative, entropies = inputs.positive, inputs.negative, inputs.entropies
        if config.kl_coef != 0 and inputs.reference_logprobs is None:
            raise ValueError(f"kl_coef={config.kl_coef} needs the log-probabilities of the reference policy")
        log_ratio = inputs.logprobs - inputs.old_logprobs
        ratio = log_ratio.exp()
        high, low = 1 + config.clip_eps_high, 1 - config.clip_eps_low

        policy_loss = (negative * ratio.clamp(min=low) - positive * ratio.clamp(max=high)).sum() / denominator
        loss = policy_loss
        sums = {
            "weight": weight.sum(),
            "entropy": (weight * entropies.detach()).sum(),
            "ratio": (weight * ratio).sum(),
            "policy_kl": (weight * (ratio - 1 - log_ratio)).sum(),
            "clip_fraction_high": (weight * ((ratio > high) & (positive > 0))).sum(),
            "clip_fraction_low": (weight * ((ratio < low) & (negative > 0))).sum(),
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
