"""The clipped policy loss over the unique tokens of packed trees.

With r = pi_theta / pi_old, H the entropy of the distribution a token is drawn from, the sums ``weight``,
``positive``, ``negative`` of :mod:`.credit`, and the importance weight v of :mod:`.mismatch`, a constant::

    loss = sum_t [ v * (-positive * min(r, 1 + eps_high) + negative * max(r, 1 - eps_low))
                   - advantage_entropy_coef * v * (positive - negative) * H
                   - entropy_coef * weight * H
                   + kl_coef * weight * k3 ] / denominator
    k3   = exp(log pi_reference - log pi_theta) - (log pi_reference - log pi_theta) - 1

For a token with one advantage A and weight w, ``positive`` is w * max(A, 0) and ``negative`` w * max(-A, 0). If
A >= 0, ``min(r A, clip(r) A) = A * min(r, 1 + eps_high)``, because the lower clip can only raise r A; if A < 0,
it is ``A * max(r, 1 - eps_low)`` in the same way. So the first two terms are ``-w * min(r A, clip(r) A)``, the
usual surrogate; k3 (paper: GRPO's) estimates KL(pi_theta || pi_reference) and is never negative.

``positive - negative`` is w * A, so the second line is IBRO's sum_t A_t H_t (arXiv 2507.18391), and the third the
usual entropy bonus. v multiplies what an advantage multiplies, not the KL term nor the bonus (declared).

The denominator belongs to the whole optimizer step, over all ranks and micro-batches. Losses of micro-batches
therefore add up, and so do the metrics, which are sums until :func:`mean_metrics` divides them. Nothing here
replaces a value that is not finite: nan shows in the loss, and ``policy_kl`` is finite only if every ratio and
its logarithm is (a ratio of 0 would pass through the surrogate unseen).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nemo_ibtpo.config.schema import LossConfig


def clipped_tree_loss(
    logprobs_T: Tensor,
    entropies_T: Tensor,
    old_logprobs_T: Tensor,
    reference_logprobs_T: Tensor | None,
    *,
    importance_T: Tensor | None,
    weight_T: Tensor,
    positive_T: Tensor,
    negative_T: Tensor,
    denominator: float,
    config: LossConfig,
    advantage_entropy_coef: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one micro-batch and the sums behind its metrics, over its T tokens in the loss.

    Args:
        logprobs_T: log-probabilities (nats) of the tokens under the policy that is trained.
        entropies_T: entropies (nats) of the distributions they are drawn from.
        old_logprobs_T: under the policy before the update, the one that sampled them.
        reference_logprobs_T: under the reference policy; None if ``kl_coef`` is 0.
        importance_T: importance weights; None for 1.
        weight_T, positive_T, negative_T: the token targets. T may be 0.
        denominator: of the whole optimizer step, over all ranks; > 0.
        config: clipping and the weights of the KL term and of the entropy bonus.
        advantage_entropy_coef: weight of IBRO's term.

    Returns:
        The scalar loss, and detached sums for :func:`mean_metrics`.

    Raises:
        ValueError: the KL term is asked for without reference log-probabilities, or the denominator is not
            positive.
    """
    if not denominator > 0:
        raise ValueError(f"the loss is divided by {denominator}; a step needs a trajectory that is trained on")
    if config.kl_coef != 0 and reference_logprobs_T is None:
        raise ValueError(f"kl_coef={config.kl_coef} needs the log-probabilities of the reference policy")
    log_ratio_T = logprobs_T - old_logprobs_T
    ratio_T = log_ratio_T.exp()
    high, low = 1 + config.clip_eps_high, 1 - config.clip_eps_low

    if importance_T is not None:
        positive_T, negative_T = importance_T * positive_T, importance_T * negative_T
    policy_loss = (negative_T * ratio_T.clamp(min=low) - positive_T * ratio_T.clamp(max=high)).sum() / denominator
    loss = policy_loss
    sums = {
        "weight": weight_T.sum(),
        "entropy": (weight_T * entropies_T.detach()).sum(),
        "ratio": (weight_T * ratio_T).sum(),
        "policy_kl": (weight_T * (ratio_T - 1 - log_ratio_T)).sum(),
        "clip_fraction_high": (weight_T * ((ratio_T > high) & (positive_T > 0))).sum(),
        "clip_fraction_low": (weight_T * ((ratio_T < low) & (negative_T > 0))).sum(),
        "policy_loss": policy_loss,
    }
    if reference_logprobs_T is not None:
        reference_log_ratio_T = reference_logprobs_T - logprobs_T
        reference_kl = (weight_T * (reference_log_ratio_T.exp() - reference_log_ratio_T - 1)).sum()
        loss = loss + config.kl_coef * reference_kl / denominator
        sums["reference_kl"] = reference_kl
    if config.entropy_coef != 0:
        loss = loss - config.entropy_coef * (weight_T * entropies_T).sum() / denominator
    if advantage_entropy_coef != 0:
        advantage_entropy = ((positive_T - negative_T) * entropies_T).sum()
        loss = loss - advantage_entropy_coef * advantage_entropy / denominator
        sums["advantage_entropy"] = advantage_entropy
    return loss, {name: value.detach() for name, value in sums.items()}


def mean_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics of an optimizer step from the sums of all its micro-batches and ranks.

    Means are over the tokens as the loss weighs them: ``ratio`` of pi_theta / pi_old, ``policy_kl`` (k3 of
    KL(pi_old || pi_theta)), ``entropy``, ``reference_kl`` (k3 of KL(pi_theta || pi_reference)),
    ``clip_fraction_high`` and ``clip_fraction_low`` (where clipping stops the gradient of a positive or negative
    advantage), and of the advantage times the entropy (``advantage_entropy``, IBRO only). ``policy_loss`` is a sum
    already.
    """
    rest = {name: value / sums["weight"] for name, value in sums.items() if name not in ("weight", "policy_loss")}
    return {"policy_loss": sums["policy_loss"], **rest}
