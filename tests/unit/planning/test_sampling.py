"""Seconds of sampling that a plan predicts.

Why it matters: the plan decides which window a recipe takes. Not exercised: engines that are there; the whole grid of
``benchmarks/sampling_at_scale.py --plan``, which takes minutes.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import SamplerConfig
from nemo_ibtpo.planning.assumptions import Assumptions
from nemo_ibtpo.planning.engine_model import EngineModel, engine_model
from nemo_ibtpo.planning.memory import engine_memory
from nemo_ibtpo.planning.model_shape import find_config, shape_of
from nemo_ibtpo.planning.response_lengths import ResponseLengths
from nemo_ibtpo.planning.sampling import Workload, sampling_seconds, simulate_steps

RECIPE = compose("ibtpo-llama-3.1-8b-instruct-1n8g-tp2pp1", [])
SHORT = ResponseLengths(1_000, 2_048, 0.7)
CHAINS = replace(RECIPE.sampler, name="independent", initial_rollouts=8, rounds=1, max_sequences_per_tree=None)


def trees(window: int | None) -> SamplerConfig:
    return replace(RECIPE.sampler, max_sequences_per_tree=window)


def engine() -> EngineModel:
    assumptions = Assumptions()
    shape = shape_of(find_config(RECIPE.model.path)[0])
    return engine_model(shape, engine_memory(RECIPE, shape, assumptions), 1, 256, assumptions)


def seconds(
    sampler: SamplerConfig,
    lengths: ResponseLengths = SHORT,
    engines: int = 8,
    trees: int = 8,
    in_flight: int | None = None,
) -> float:
    return sampling_seconds(engine(), engines, trees, in_flight, sampler, RECIPE.ib_score, lengths, 256)


def test_responses_of_one_length_take_the_sum_of_their_decoding_steps() -> None:
    model, tokens = engine(), 2_048
    decoding = sum(model.decode_s(32, 32 * (256 + drawn)) for drawn in range(tokens))
    prefill = 8 * 256 * model.prefill_token_s  # the responses of a prompt share it
    four = replace(CHAINS, initial_rollouts=4)  # of eight prompts fill the cache
    assert seconds(four, ResponseLengths(tokens, tokens, 0.7)) == pytest.approx(prefill + decoding, rel=0.002)


def test_a_wider_window_takes_less_time() -> None:
    each = [seconds(trees(window), engines=4) for window in (1, 4, 8)]
    assert each == sorted(each, reverse=True)
    assert each[0] > 2.5 * each[-1]


def test_rounds_of_one_are_a_window_of_one() -> None:
    assert seconds(trees(None), engines=1) == seconds(trees(1), engines=1)


def test_carried_trees_take_less_time_for_as_many_tokens() -> None:
    workload, chains = Workload(SHORT, 256, 128, 32), replace(CHAINS, max_policy_lag=4)
    whole, carried = (
        simulate_steps(workload, workload.engines(engine(), 2), 16, in_flight, chains, RECIPE.ib_score)
        for in_flight in (None, 24)
    )
    assert carried.seconds < 0.9 * whole.seconds
    assert carried.sequences > whole.sequences
    assert whole.tokens == pytest.approx(16 * 8 * 1_000, rel=0.05)
    assert carried.tokens == pytest.approx(whole.tokens, rel=0.1)


def test_more_trees_than_are_simulated_take_longer_in_proportion() -> None:
    one = replace(CHAINS, initial_rollouts=1)
    whole, twice = (seconds(one, engines=1, trees=trees) for trees in (128, 256))
    assert 1.1 * whole < twice < 2 * whole


@pytest.mark.parametrize(("mean", "cap"), [(1_000, 2_048), (1_900, 2_048), (300, 16_384)])
def test_responses_have_the_mean(mean: int, cap: int) -> None:
    rng, lengths = random.Random(0), ResponseLengths(mean, cap, 0.7)
    drawn = [lengths.draw(rng, is_branch=False) for _ in range(20_000)]
    assert max(drawn) <= cap
    assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=0.02)
    assert {ResponseLengths(cap, cap, 0.7).draw(rng, is_branch=False) for _ in range(3)} == {cap}
