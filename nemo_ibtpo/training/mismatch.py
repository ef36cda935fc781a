"""How far the engine that samples is from the actor that trains, what the loss does about it, when a run stops.

Both compute the same policy, but with other kernels, another precision, perhaps a truncated distribution, or, where
something is wrong, other weights. With d = log pi_actor - log pi_engine of each sampled token::

    token_mult_prob_error  mean of exp(|d|), 1 when they agree            (name and formula of NeMo RL)
    gen_kl_error           mean of exp(d) - d - 1, k3 of KL(engine || actor) in nats               (NeMo RL)
    importance ratio       exp(d), which the loss truncates at a cap

``pi_actor`` is the policy before the first update of the step. What the loss does about a difference is in
``losses/importance.py``.
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
        error, kl, ratio: sums of exp(|d|), of exp(d) - d - 1 and of exp(d).
        ratio_max: largest exp(d).
        truncated: tokens whose exp(d) is above the cap.
    """

    tokens: int = 0
    error: float = 0.0
    kl: float = 0.0
    ratio: float = 0.0
    ratio_max: float = 0.0
    truncated: int = 0

    def __add__(self, other: Mismatch) -> Mismatch:
        return Mismatch(
            self.tokens + other.tokens,
            self.error + other.error,
            self.kl + other.kl,
            self.ratio + other.ratio,
            float(np.maximum(self.ratio_max, other.ratio_max)),  # a nan of either side stays
            self.truncated + other.truncated,
        )

    @property
    def token_mult_prob_error(self) -> float:
        """Mean of exp(|d|)."""
        return self.error / self.tokens

    def metrics(self) -> dict[str, float]:
        """What is logged; there must be a token."""
        return {
            "mismatch/token_mult_prob_error": self.token_mult_prob_error,
            "mismatch/gen_kl_error": self.kl / self.tokens,
            "mismatch/importance_ratio_mean": self.ratio / self.tokens,
            "mismatch/importance_ratio_max": self.ratio_max,
            "mismatch/importance_truncated": self.truncated / self.tokens,
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
        measure_tokens(old[batch.in_loss], batch.behaviour_logprobs[batch.in_loss], cap) for batch, old in known
    )


def measure_tokens(old_logprobs: NDArray[Any], behaviour_logprobs: NDArray[Any], cap: float) -> Mismatch:
    """Of N tokens; [N] each, N may be 0."""
    d = old_logprobs.astype(np.float64) - behaviour_logprobs
    if len(d) == 0:
        return Mismatch()
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.exp(d)
        return Mismatch(
            tokens=len(d),
            error=float(np.exp(np.abs(d)).sum()),
            kl=float((ratio - d - 1).sum()),
            ratio=float(ratio.sum()),
            ratio_max=float(ratio.max()),
            truncated=int((ratio > cap).sum()) if cap else 0,
        )


def refuse_mismatch(mismatch: Mismatch, limit: float) -> None:
    """Stop a run whose engine does not sample the policy that is trained.

    Args:
        mismatch: over all ranks, so that all of them stop.
        limit: of ``token_mult_prob_error``; 0 for none.

    Raises:
        UserError: the error is above the limit, or not a number.
    """
    error = mismatch.token_mult_prob_error
    if limit and not error <= limit:
        raise UserError(
            f"engine and actor disagree: mismatch/token_mult_prob_error is {error:.4g}, above "
            f"loss.max_token_mult_prob_error={limit}; the weights were left as they were. Compare the engine's "
            "weights, precision and sampling distribution with the actor's (docs/algorithm.md, section 7), or raise "
            "the limit"
        )
