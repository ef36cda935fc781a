"""Seconds of sampling that a plan predicts, against real growth on the same simulated engines.

Why it matters: the plan decides which window a recipe takes. The figures of the simulation are those of one run of
``benchmarks/sampling_at_scale.py`` (64 prompts on 8 engines), which takes too long for a test and compares the whole
grid. Not exercised: engines that are there.
"""

from __future__ import annotations

import random

import pytest

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.planning.assumptions import Assumptions
from nemo_ibtpo.planning.engine_model import EngineModel, engine_model
from nemo_ibtpo.planning.memory import engine_memory
from nemo_ibtpo.planning.model_shape import find_config, shape_of
from nemo_ibtpo.planning.response_lengths import ResponseLengths
from nemo_ibtpo.planning.sampling import TreeShape, sampling_seconds

RECIPES = {"8b": "ibtpo-llama-3.1-8b-instruct-1n8g-tp2pp1", "70b": "ibtpo-llama-3.3-70b-instruct-8n8g-tp8pp4"}
LENGTHS = {"short": ResponseLengths(1_000, 2_048, 0.7), "long": ResponseLengths(4_000, 16_384, 0.7)}
CHAINS = TreeShape(8, 0, 1, None)


def tree(window: int | None) -> TreeShape:
    return TreeShape(4, 8, 1, window)


def engine_of(fleet: str) -> EngineModel:
    config, assumptions = compose(RECIPES[fleet], []), Assumptions()
    shape = shape_of(find_config(config.model.path)[0])
    memory = engine_memory(config, shape, assumptions)
    return engine_model(shape, memory, config.rollout.tensor_parallel_size, 256, assumptions)


def seconds(fleet: str, lengths: str, shape: TreeShape, trees: int = 8, more: int = 0) -> float:
    engine = engine_of(fleet)
    return sampling_seconds(engine, 8, trees, trees + more, shape, LENGTHS[lengths], 256, carried=more > 0)


@pytest.mark.parametrize(
    ("fleet", "lengths", "shape", "more", "simulated"),
    [
        ("8b", "short", CHAINS, 0, 28.03),
        ("8b", "short", tree(1), 0, 119.9),
        ("8b", "short", tree(4), 0, 48.13),
        ("8b", "short", tree(8), 0, 36.51),
        ("8b", "short", tree(4), 4, 23.55),
        ("8b", "long", CHAINS, 0, 255.2),
        ("8b", "long", tree(8), 0, 266.6),
        ("70b", "short", tree(4), 0, 50.91),
        ("70b", "long", tree(4), 4, 99.07),
    ],
)
def test_seconds_are_those_of_real_growth(
    fleet: str, lengths: str, shape: TreeShape, more: int, simulated: float
) -> None:
    assert seconds(fleet, lengths, shape, more=more) == pytest.approx(simulated, rel=0.1)


def test_rounds_of_one_are_a_window_of_one() -> None:
    assert seconds("8b", "short", tree(None)) == seconds("8b", "short", tree(1))


def test_more_trees_than_are_simulated_take_longer_in_proportion() -> None:
    whole, twice = (seconds("8b", "short", TreeShape(1, 0, 1, None), trees) for trees in (256, 512))
    assert 1.2 * whole < twice < 2 * whole


@pytest.mark.parametrize(("mean", "cap"), [(1_000, 2_048), (1_900, 2_048), (300, 16_384)])
def test_responses_have_the_mean(mean: int, cap: int) -> None:
    rng, lengths = random.Random(0), ResponseLengths(mean, cap, 0.7)
    drawn = [lengths.draw(rng, is_branch=False) for _ in range(20_000)]
    assert max(drawn) <= cap
    assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=0.02)
    assert {ResponseLengths(cap, cap, 0.7).draw(rng, is_branch=False) for _ in range(3)} == {cap}
