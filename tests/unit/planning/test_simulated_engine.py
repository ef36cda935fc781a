"""Engines in virtual time.

Why it matters: plans and the benchmark of sampling stand on them. Not exercised: engines that are there.
"""

from __future__ import annotations

import pytest

from nemo_ibtpo.planning.engine_model import EngineModel
from nemo_ibtpo.planning.simulated_engine import SimulatedEngines
from nemo_ibtpo.tree.rollouts import RolloutRequest

MODEL = EngineModel(
    max_batch=4,
    cache_tokens=1_000,
    step_s=0.1,
    cached_token_s=0.001,
    sequence_s=0.0,
    prefill_token_s=0.01,
    overhead_s=0.02,
)
PROMPT = (-2, -1)


def lengths(request: RolloutRequest) -> int:
    return request.seed


def engines_with(*wanted: int, model: EngineModel = MODEL) -> SimulatedEngines:
    engines = SimulatedEngines(model, 1, lengths, quantum=1)
    engines.submit([RolloutRequest((0, n), PROMPT, 50, length) for n, length in enumerate(wanted)])
    return engines


def test_time_is_that_of_prefixes_and_decoding_steps() -> None:
    engines = engines_with(3, 3)
    while not (ended := engines.poll()):
        pass
    assert [len(rollout.tokens) for rollout in ended] == [3, 3]
    prefill = len(PROMPT) * MODEL.prefill_token_s  # of two equal prompts only one is computed
    steps = sum(MODEL.step_s + 2 * (len(PROMPT) + drawn + 0.5) * MODEL.cached_token_s for drawn in range(3))
    assert engines.now == pytest.approx(prefill + steps)
    assert engines.sampled == 6
    assert engines.places == pytest.approx(2 * steps / (prefill + steps), rel=0.1)


@pytest.mark.parametrize("kept", [1, 4, 6])
def test_a_response_that_was_cut_off_ends_where_it_would_have_ended(kept: int) -> None:
    engines = engines_with(9, 30)
    for _ in range(6):
        engines.poll()
    cut = {one.request_id: one for one in engines.cut({})}
    so_far = cut[0, 0].tokens[:kept]  # what was drawn beyond a step's end is forgotten
    engines.submit([RolloutRequest((0, 0), PROMPT + so_far, 50 - kept, 40)])
    while not (ended := engines.poll()):
        pass
    assert kept + len(ended[0].tokens) == 9
    engines.submit([RolloutRequest((0, 2), PROMPT + so_far, 50 - kept, 5)])  # a branch at the same place
    while not (ended := engines.poll()):
        pass
    assert len(ended[0].tokens) == 5


def test_a_full_cache_preempts_the_youngest() -> None:
    small = EngineModel(4, 24, 0.1, 0.001, 0.0, 0.01, 0.02)
    engines = engines_with(15, 15, model=small)
    ended = [rollout for _ in range(60) for rollout in engines.poll()]
    assert [rollout.request_id for rollout in ended] == [(0, 0), (0, 1)]
    assert engines.sampled == 30  # what was drawn is computed once more, not drawn
