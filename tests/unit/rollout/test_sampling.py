"""Every reward, value and advantage is a mean over draws: a sampler that is a little off is off everywhere.

The distribution is checked against one computed here with plain numpy. Randomness as such (the quality of the
mixing function beyond uniformity and independence of neighbouring counters and seeds) is not examined.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.rollout.embedded.sampling import kept_tokens, sample, sampling_logprobs, uniforms
from nemo_ibtpo.rollout.engine import SamplingParams
from nemo_ibtpo.rollout.requests import check_sampling

LOGITS = np.random.default_rng(0).normal(0.0, 1.5, 16).astype(np.float32)


def expected_distribution(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """The definition, one token after the other."""
    probs = np.exp(logits.astype(np.float64) / temperature)
    order = np.argsort(-probs)
    kept = order[: top_k or len(order)]
    mass, nucleus = 0.0, []
    for token in kept:
        if mass < top_p * probs[kept].sum():
            nucleus.append(token)
        mass += probs[token]
    out = np.zeros_like(probs)
    out[nucleus] = probs[nucleus] / probs[nucleus].sum()
    return out


def chi_square_excess(counts: np.ndarray, probs: np.ndarray) -> float:
    """Standard deviations by which the chi-square statistic exceeds its mean."""
    assert counts[probs == 0].sum() == 0
    expected = counts.sum() * probs[probs > 0]
    degrees = len(expected) - 1
    statistic = ((counts[probs > 0] - expected) ** 2 / expected).sum()
    return float((statistic - degrees) / np.sqrt(2 * degrees))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.8), (0.7, 9, 0.9)]
)
def test_draws_follow_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    n = 200_000
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    u = torch.from_numpy(uniforms(np.arange(n, dtype=np.uint64), np.zeros(n, dtype=np.int64)))
    tokens, logprobs = sample(sampling_logprobs(torch.from_numpy(LOGITS).expand(n, -1), params), u)
    probs = expected_distribution(LOGITS, temperature, top_k, top_p)
    assert abs(chi_square_excess(np.bincount(tokens.numpy(), minlength=16), probs)) < 5
    np.testing.assert_allclose(logprobs.numpy(), np.log(probs[tokens.numpy()]), atol=1e-5)


def test_cut_off_distribution_is_normalised() -> None:
    params = SamplingParams(temperature=0.7, top_k=9, top_p=0.9)
    logprobs = sampling_logprobs(torch.from_numpy(LOGITS)[None], params)
    assert logprobs.dtype == torch.float32
    [kept] = kept_tokens(logprobs)
    assert (
        np.frombuffer(kept, np.int32).tolist() == np.flatnonzero(expected_distribution(LOGITS, 0.7, 9, 0.9)).tolist()
    )
    np.testing.assert_allclose(logprobs.exp()[0], expected_distribution(LOGITS, 0.7, 9, 0.9), atol=1e-6)


def test_uniforms_are_uniform_and_independent_along_seeds_and_counters() -> None:
    seeds, counters = np.meshgrid(np.arange(512, dtype=np.uint64), np.arange(512), indexing="ij")
    u = uniforms(seeds.ravel(), counters.ravel()).reshape(512, 512)
    assert u.min() >= 0.0 and u.max() < 1.0
    assert len(np.unique(u)) == u.size
    assert abs(chi_square_excess(np.histogram(u, bins=64, range=(0, 1))[0], np.full(64, 1 / 64))) < 5
    for neighbour in (u[1:] * u[:-1], u[:, 1:] * u[:, :-1]):
        assert abs(neighbour.mean() - 0.25) < 5 * 0.22 / np.sqrt(neighbour.size)


def test_seeds_that_differ_by_the_increment_do_not_share_a_sequence() -> None:
    golden = 0x9E3779B97F4A7C15
    counters = np.arange(100)
    a = uniforms(np.full(100, 7, dtype=np.uint64), counters)
    b = uniforms(np.full(100, 7 + golden, dtype=np.uint64), counters)
    assert not set(a) & set(b)


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 2e-38])
def test_tiny_temperatures_take_the_likeliest_token(temperature: float) -> None:
    logits = torch.from_numpy(LOGITS)[None] + 100  # without the shift the division would overflow
    token, logprob = sample(
        sampling_logprobs(logits, SamplingParams(temperature)), torch.tensor([0.999999], dtype=torch.float64)
    )
    assert token.item() == LOGITS.argmax()
    assert logprob.item() == 0.0


def test_extreme_uniforms_never_draw_a_token_that_was_cut_off() -> None:
    params = SamplingParams(top_k=3)
    u = torch.tensor([0.0, 1.0 - 2.0**-52], dtype=torch.float64)
    tokens, logprobs = sample(sampling_logprobs(torch.from_numpy(LOGITS).expand(2, -1), params), u)
    assert set(tokens.tolist()) <= set(np.argsort(-LOGITS)[:3].tolist())
    assert torch.isfinite(logprobs).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_row_has_no_log_probability(bad: float) -> None:
    logits = torch.from_numpy(LOGITS).repeat(2, 1)
    logits[1, 3] = bad
    _, logprobs = sample(sampling_logprobs(logits, SamplingParams()), torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert torch.isfinite(logprobs[0]) and torch.isnan(logprobs[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"stop": ("",)}, "empty text"),
        ({"eos_token_ids": (61,)}, "end-of-sequence id 61"),
    ],
)
def test_parameters_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_sampling(SamplingParams(**options), vocab_size=61)
