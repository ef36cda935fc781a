"""From records to the figures of the table. Pure Python and numpy.

Samplers cost different numbers of tokens, so each is also compared with independent sampling *at the same tokens*. A
token is one that the engine drew. Of G independent trajectories of a prompt any g are an independent sample of size
g, so that the expected Eff-Rate of g trajectories is estimated over all subsets at once, as pass@k is::

    Eff(g) = 1 - sum over reward values r of C(n_r, g) / C(G, g)

which is unbiased for g <= G. The budget of a tree gives a g that is no integer; it is met by taking floor(g) + 1
trajectories for the right share of prompts and floor(g) for the others, that is, by interpolation. Avg-Rate does not
depend on g.

Intervals are 95 % bootstrap intervals over prompts; those of differences are paired: both samplers see the same
prompts, and the same random numbers for what they sample from the prompt itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, floor

import numpy as np

from nemo_ibtpo.evaluation.statistics import Estimate, bootstrap
from nemo_ibtpo.tree.tree import FloatArray


@dataclass(frozen=True, slots=True)
class Record:
    """One prompt's tree under one sampler.

    Attributes:
        sampler: the sampler's label.
        prompt_id: the problem's identifier.
        rewards: of its trajectories, in no order that means anything.
        sampled_tokens: tokens that the engine drew for it.
        unique_tokens, duplicated_tokens: tokens of the tree, a shared one counted once or for every trajectory.
        seconds: wall time since the sampler's tree before it was complete; they add up to the sampler's time.
        prefill_tokens, cached_prefix_tokens: what the engine computed and re-used of prefixes in that time.
    """

    sampler: str
    prompt_id: str
    rewards: tuple[float, ...]
    sampled_tokens: int
    unique_tokens: int
    duplicated_tokens: int
    seconds: float
    prefill_tokens: int
    cached_prefix_tokens: int


@dataclass(frozen=True, slots=True)
class AtEqualTokens:
    """Independent sampling at a sampler's tokens.

    Attributes:
        trajectories: g, as many independent trajectories as cost the same tokens on average.
        eff_rate: their Eff-Rate.
        eff_difference, avg_difference: the sampler's rates minus those of independent sampling.
    """

    trajectories: float
    eff_rate: float
    eff_difference: Estimate
    avg_difference: Estimate


@dataclass(frozen=True, slots=True)
class SamplerResult:
    """One row of the table; token counts and seconds are means per prompt.

    Attributes:
        trajectories: G.
        eff_rate: share of prompts whose rewards differ.
        avg_rate: mean reward of a trajectory.
        prefix_hit_rate: share of prefix tokens whose keys and values were re-used; None without any.
        independent: independent sampling at equal tokens; None for an independent sampler, without one in the
            study, and where it did not sample so many tokens.
    """

    label: str
    prompts: int
    trajectories: float
    eff_rate: Estimate
    avg_rate: Estimate
    sampled_tokens: float
    unique_tokens: float
    duplicated_tokens: float
    seconds: float
    prefix_hit_rate: float | None
    independent: AtEqualTokens | None


def is_mixed(record: Record) -> float:
    """1 if the rewards differ, else 0."""
    return float(min(record.rewards) < max(record.rewards))


def mixed_of_subset(record: Record, size: float) -> float:
    """Probability that the rewards of ``size`` of the record's independent trajectories differ; 0 <= size <= G."""
    below = floor(size)
    share = size - below
    mixed = _mixed_of_subset(record.rewards, below)
    return mixed if share == 0 else (1 - share) * mixed + share * _mixed_of_subset(record.rewards, below + 1)


def _mixed_of_subset(rewards: Sequence[float], size: int) -> float:
    if size < 2:
        return 0.0
    alike = sum(comb(count, size) for count in Counter(rewards).values())
    return 1.0 - alike / comb(len(rewards), size)


def summarise(records: Mapping[str, Sequence[Record]], independent: str | None, seed: int) -> list[SamplerResult]:
    """A result for each sampler.

    Args:
        records: of each sampler by its label, of the same prompts in the same order.
        independent: label of the sampler of independent trajectories that the others are compared with.
        seed: of the bootstrap.
    """
    baseline = records.get(independent or "")
    return [
        _summarise(label, own, None if label == independent else baseline, seed) for label, own in records.items()
    ]


def _summarise(
    label: str, records: Sequence[Record], independent: Sequence[Record] | None, seed: int
) -> SamplerResult:
    eff_P = np.array([is_mixed(record) for record in records])
    avg_P = np.array([np.mean(record.rewards) for record in records])
    tokens = _mean(records, "sampled_tokens")
    prefixes = sum(record.prefill_tokens + record.cached_prefix_tokens for record in records)
    return SamplerResult(
        label=label,
        prompts=len(records),
        trajectories=float(np.mean([len(record.rewards) for record in records])),
        eff_rate=bootstrap(eff_P, seed),
        avg_rate=bootstrap(avg_P, seed),
        sampled_tokens=tokens,
        unique_tokens=_mean(records, "unique_tokens"),
        duplicated_tokens=_mean(records, "duplicated_tokens"),
        seconds=_mean(records, "seconds"),
        prefix_hit_rate=sum(record.cached_prefix_tokens for record in records) / prefixes if prefixes else None,
        independent=_at_equal_tokens(tokens, eff_P, avg_P, independent, seed) if independent else None,
    )


def _at_equal_tokens(
    tokens: float, eff_P: FloatArray, avg_P: FloatArray, independent: Sequence[Record], seed: int
) -> AtEqualTokens | None:
    sampled = min(len(record.rewards) for record in independent)
    size = tokens / _mean(independent, "sampled_tokens") * sampled
    if size > sampled:
        return None
    baseline_P = np.array([mixed_of_subset(record, size) for record in independent])
    baseline_avg_P = np.array([np.mean(record.rewards) for record in independent])
    return AtEqualTokens(
        trajectories=size,
        eff_rate=float(baseline_P.mean()),
        eff_difference=bootstrap(eff_P - baseline_P, seed),
        avg_difference=bootstrap(avg_P - baseline_avg_P, seed),
    )


def _mean(records: Sequence[Record], name: str) -> float:
    return float(np.mean([getattr(record, name) for record in records]))
