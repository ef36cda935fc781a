"""From the sums that losses report to metrics of an update."""

from __future__ import annotations

from collections.abc import Mapping


def mean_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics of an update from the sums of all its micro-batches and ranks.

    Means are over the tokens as the loss weighs them: ``ratio``, what is clipped (pi_theta / pi_old of a token, of a
    run for GSPO), ``policy_kl`` (k3 of KL(pi_old || pi_theta)), ``entropy``, ``reference_kl`` (k3 of KL(pi_theta ||
    pi_reference)), ``clip_fraction_high`` and ``clip_fraction_low`` (where clipping stops the gradient of a positive
    or negative advantage), and of the advantage times the entropy (``advantage_entropy``, IBRO only).
    ``policy_loss`` is a sum already.
    """
    rest = {name: value / sums["weight"] for name, value in sums.items() if name not in ("weight", "policy_loss")}
    return {"policy_loss": sums["policy_loss"], **rest}
