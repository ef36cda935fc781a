"""How far the engine that samples is from the actor that trains, what the loss does about it, when a run stops.

Both compute the same policy, but with other kernels, another precision, perhaps a truncated distribution, or, where
something is wrong, other weights. With d = log pi_actor - log pi_engine of each sampled token::

    token_mult_prob_error  mean of exp(|d|), 1 when they agree            (name and formula of NeMo RL)
    gen_kl_error           mean of exp(d) - d - 1, k3 of KL(engine || actor) in nats               (NeMo RL)
    importance ratio       exp(d), which the loss truncates at a cap
    effective sample size  (sum w)^2 / (n sum w^2) of the truncated ratios w of n tokens, 1 when they are equal

``pi_actor`` is the policy before the first update of the step. A token of a carried tree may be of an older policy,
and differ for that reason: the errors, and whether the run stops, are of the tokens that this very policy has
sampled. What the loss does about a difference is in ``losses/importance.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.tree.packing import PackedBatch


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Sums over tokens, and a maximum; those of several ranks and updates combine to those of all their tokens.

    Attributes:
        tokens: sampled tokens, each unique one once.
        judged: those of them that are not of an older policy.
        error, kl: sums of exp(|d|) and of exp(d) - d - 1 over these.
        ratio: sum of exp(d).
        ratio_max: largest exp(d).
        truncated: tokens whose exp(d) is above the cap.
        weight, weight_square: sums of the truncated exp(d) and of its square.
    """

    tokens: int = 0
    judged: int = 0
    error: float = 0.0
    kl: float = 0.0
    ratio: float = 0.0
    ratio_max: float = 0.0
    truncated: int = 0
    weight: float = 0.0
    weight_square: float = 0.0

    def __add__(self, other: Mismatch) -> Mismatch:
        return Mismatch(
            self.tokens + other.tokens,
            self.judged + other.judged,
            self.error + other.error,
            self.kl + other.kl,
            self.ratio + other.ratio,
            float(np.maximum(self.ratio_max, other.ratio_max)),  # a nan of either side stays
            self.truncated + other.truncated,
            self.weight + other.weight,
            self.weight_square + other.weight_square,
        )

    def metrics(self) -> dict[str, float]:
        """What is logged; there must be a token."""
        errors = {
            "mismatch/token_mult_prob_error": self.error,
            "mismatch/gen_kl_error": self.kl,
        }
        return {name: value / self.judged for name, value in errors.items() if self.judged} | {
            "mismatch/importance_ratio_mean": self.ratio / self.tokens,
            "mismatch/importance_ratio_max": self.ratio_max,
            "mismatch/importance_truncated": self.truncated / self.tokens,
            "mismatch/effective_sample_size": self.weight**2 / (self.tokens * self.weight_square or 1.0),
        }


def total(parts: Iterable[Mismatch]) -> Mismatch:
    """Of all tokens together."""
    return sum(parts, Mismatch())


def measure(batches: Sequence[PackedBatch], cap: float) -> Mismatch:
    """Of the tokens in the loss of micro-batches whose ``old_logprobs`` are known.

    Args:
        batches: perhaps without a token in the loss.
        cap: above which a ratio is truncated; 0 for never.
    """
    known = ((batch, batch.old_logprobs) for batch in batches if batch.old_logprobs is not None)
    return total(
        measure_tokens(
            old[batch.in_loss],
            batch.behaviour_logprobs[batch.in_loss],
            cap,
            None if batch.lag is None else batch.lag[batch.in_loss],
        )
        for batch, old in known
    )


def measure_tokens(
    old_logprobs: NDArray[Any], behaviour_logprobs: NDArray[Any], cap: float, lag: NDArray[Any] | None = None
) -> Mismatch:
    """Of N tokens; [N] each, N may be 0.

    Args:
        old_logprobs, behaviour_logprobs: in nats.
        cap: above which a ratio is truncated; 0 for never.
        lag: optimizer steps between the two policies; None for 0 everywhere.
    """
    d = old_logprobs.astype(np.float64) - behaviour_logprobs
    if len(d) == 0:
        return Mismatch()
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.exp(d)
        weight = np.minimum(ratio, cap) if cap else ratio
        judged = d if lag is None else d[lag == 0]
        return Mismatch(
            tokens=len(d),
            judged=len(judged),
            error=float(np.exp(np.abs(judged)).sum()),
            kl=float((np.exp(judged) - judged - 1).sum()),
            ratio=float(ratio.sum()),
            ratio_max=float(ratio.max()),
            truncated=int((ratio > cap).sum()) if cap else 0,
            weight=float(weight.sum()),
            weight_square=float((weight**2).sum()),
        )


def refuse_mismatch(mismatch: Mismatch, limit: float) -> None:
    """Stop a run whose engine does not sample the policy that is trained.

    Args:
        mismatch: over all ranks, so that all of them stop; where every token is of an older policy, nothing stops it.
        limit: of ``token_mult_prob_error``; 0 for none.

    Raises:
        UserError: the error is above the limit, or not a number.
    """
    if not (limit and mismatch.judged):
        return
    error = mismatch.error / mismatch.judged
    if not error <= limit:
        raise UserError(
            f"engine and actor disagree: mismatch/token_mult_prob_error is {error:.4g}, above "
            f"loss.max_token_mult_prob_error={limit}; the weights were left as they were. Compare the engine's "
            "weights, precision and sampling distribution with the actor's (docs/algorithm.md, section 7), or raise "
            "the limit"
        )
