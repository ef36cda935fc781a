"""Drawing tokens: counter-based uniforms and the inverse of the cumulative distribution.

A draw is a function of (logits, seed, index of the token in its continuation) and of nothing else: no generator
state is carried along. That is what makes a rollout the same whatever is decoded beside it, in whichever row,
and however often it was interrupted.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from nemo_ibtpo.rollout.engine import SamplingParams

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser: a bijection of 64-bit words in which every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seeds: NDArray[np.uint64], counters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one for each (seed, counter), with 52 random bits.

    The seed is mixed before the counter is added, so that seeds which differ by a small number, or by the
    increment itself, do not share a stretch of their sequences.
    """
    words = _splitmix64(_splitmix64(seeds + _GOLDEN) + counters.astype(np.uint64) * _GOLDEN)
    return (words >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _truncate(logprobs_BV: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Keep the ``top_k`` likeliest tokens, then the smallest set of them with mass ``top_p``; renormalise."""
    sorted_BV, order_BV = logprobs_BV.sort(dim=-1, descending=True, stable=True)
    if params.top_k > 0:
        sorted_BV[:, params.top_k :] = -torch.inf
    if params.top_p < 1.0:
        probs_BV = sorted_BV.double().softmax(dim=-1)
        mass_before_BV = probs_BV.cumsum(dim=-1) - probs_BV
        mass_before_BV[:, 0] = 0.0  # the likeliest token stays, however small top_p is
        sorted_BV = sorted_BV.masked_fill(mass_before_BV >= params.top_p, -torch.inf)
    return torch.empty_like(logprobs_BV).scatter_(-1, order_BV, sorted_BV).log_softmax(dim=-1)


def sampling_logprobs(logits_BV: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Log-probabilities [B, V] (nats, float32) of the sampling distribution, -inf where it was cut off."""
    logits_BV = logits_BV.float()
    # Shifted before it is divided, so that a tiny temperature gives 0 and -inf and never inf - inf.
    shifted_BV = logits_BV - logits_BV.amax(dim=-1, keepdim=True)
    logprobs_BV = (shifted_BV / params.temperature).log_softmax(dim=-1)
    if params.is_truncated:
        logprobs_BV = _truncate(logprobs_BV, params)
    return logprobs_BV


def penalized(logits_BV: torch.Tensor, tokens_BT: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits whose positive values are divided and whose negative ones are multiplied by ``penalty``, for the tokens
    of each sequence (Keskar et al., arXiv:1909.05858).

    Args:
        logits_BV: of the next token [B, V].
        tokens_BT: what the sequences hold so far [B, T], int64; a token counts once, however often it is there.
        penalty: above 0.
    """
    values_BT = logits_BV.gather(-1, tokens_BT)
    return logits_BV.scatter(-1, tokens_BT, torch.where(values_BT < 0, values_BT * penalty, values_BT / penalty))


def kept_tokens(logprobs_BV: torch.Tensor) -> list[bytes]:
    """The tokens of each row that were not cut off: their ids as the bytes of an int32 array."""
    kept_BV = (logprobs_BV > -torch.inf).cpu().numpy()
    return [np.flatnonzero(kept_V).astype(np.int32).tobytes() for kept_V in kept_BV]


def sample(logprobs_BV: torch.Tensor, uniforms_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row.

    Args:
        logprobs_BV: the sampling distribution of the next token [B, V].
        uniforms_B: one number in [0, 1) a row, float64, on the device of the distribution.

    Returns:
        Tokens [B] (int64) and their log-probabilities [B] (float32). A row whose logits held NaN or +inf has
        the log-probability NaN; its token means nothing.
    """
    cdf_BV = logprobs_BV.double().exp().cumsum(dim=-1)
    # 52-bit uniforms keep u * total below total after rounding, so that no cut-off token at the end is drawn.
    tokens_B1 = torch.searchsorted(cdf_BV, uniforms_B[:, None] * cdf_BV[:, -1:], right=True)
    tokens_B1 = tokens_B1.clamp_(max=logprobs_BV.shape[-1] - 1)  # only a NaN row ends outside
    return tokens_B1[:, 0], logprobs_BV.gather(-1, tokens_B1)[:, 0]
