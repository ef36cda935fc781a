"""A table that flatters a sampler is worse than none: the comparison at equal tokens must be unbiased.

The subset estimate is compared with going through all subsets. Not exercised: sampling itself.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from nemo_ibtpo.experiments.sampler_comparison.equal_tokens import Record, is_mixed, mixed_of_subset, summarise


def record(rewards: tuple[float, ...], tokens: int = 100, prompt: str = "p") -> Record:
    return Record(
        sampler="s",
        prompt_id=prompt,
        rewards=rewards,
        sampled_tokens=tokens,
        unique_tokens=tokens - 10,
        duplicated_tokens=2 * tokens,
        seconds=0.5,
        prefill_tokens=30,
        cached_prefix_tokens=10,
    )


@pytest.mark.parametrize("rewards", [(1.0, 0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.5, 0.5), (1.0,) * 4])
def test_the_subset_estimate_is_the_mean_over_all_subsets(rewards: tuple[float, ...]) -> None:
    for size in range(1, len(rewards) + 1):
        subsets = list(combinations(rewards, size))
        expected = np.mean([min(subset) < max(subset) for subset in subsets])
        assert mixed_of_subset(record(rewards), size) == pytest.approx(expected)
    assert mixed_of_subset(record(rewards), len(rewards)) == is_mixed(record(rewards))


def test_sizes_between_are_interpolated() -> None:
    one = record((1.0, 0.0, 0.0, 1.0))
    between = 0.75 * mixed_of_subset(one, 2) + 0.25 * mixed_of_subset(one, 3)
    assert mixed_of_subset(one, 2.25) == pytest.approx(between)
    assert mixed_of_subset(one, 0.5) == 0


def test_a_table_by_hand() -> None:
    independent = [record((1.0, 0.0, 0.0, 0.0), 400, "a"), record((1.0, 1.0, 1.0, 1.0), 400, "b")]
    tree = [record((1.0, 0.0, 1.0, 0.0), 150, "a"), record((1.0, 0.0, 1.0, 1.0), 250, "b")]
    first, second = summarise({"independent": independent, "ib": tree}, "independent", seed=0)
    assert first.independent is None
    assert (first.eff_rate.mean, second.eff_rate.mean) == (0.5, 1.0)
    assert second.avg_rate.mean == pytest.approx((0.5 + 0.75) / 2)
    assert (second.sampled_tokens, second.unique_tokens, second.duplicated_tokens) == (200, 190, 400)
    assert second.prefix_hit_rate == 0.25
    same = second.independent
    assert same is not None
    # 200 of 400 tokens: 2 of 4 trajectories, of which the one right answer is among half of all pairs.
    assert same.trajectories == 2
    assert same.eff_rate == pytest.approx(0.5 / 2)
    assert same.eff_difference.mean == pytest.approx(1 - 0.25)
    assert same.avg_difference.mean == pytest.approx(0)


def test_more_tokens_than_were_sampled_are_not_compared() -> None:
    independent = [record((1.0, 0.0), 100)]
    (_, tree) = summarise({"i": independent, "t": [replace(independent[0], sampled_tokens=101)]}, "i", seed=0)
    assert tree.independent is None
