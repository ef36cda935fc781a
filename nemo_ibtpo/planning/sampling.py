"""Sampling of a step in virtual time: the real growth code on simulated engines.

Trees are grown by the configured sampler (:mod:`nemo_ibtpo.tree.growth`, :mod:`nemo_ibtpo.tree.carry_over`) on the
engines of :mod:`nemo_ibtpo.planning.simulated_engine`. Of a language model there is only how long responses are, of a
verifier only how often it says yes: a prompt is solved with a probability of its own, and the verdict comes at once.
Seconds are the mean of some steps.

Declared: a mean response has eight reasoning steps, unless steps are segments; a step makes one update; at most eight
engines with 128 trees in all are simulated; where an engine alone grows more trees than that, they take longer in
proportion.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from typing import Any

from nemo_ibtpo.config.schema import IBScoreConfig, SamplerConfig
from nemo_ibtpo.planning.engine_model import EngineModel
from nemo_ibtpo.planning.response_lengths import ResponseLengths, length_in_quanta
from nemo_ibtpo.planning.simulated_engine import SimulatedEngines
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.carry_over import grow_until_closed
from nemo_ibtpo.tree.growth import GrowthTask, grow
from nemo_ibtpo.tree.steps import FixedWidthSplitter
from nemo_ibtpo.tree.trees_in_flight import TreesInFlight, least_policy_lag

_STEPS = 8  # that are measured; single ones scatter by 5 to 10 %
_STEPS_BEFORE = 4  # with trees carried over, until about as many tokens are begun as are trained
_EXCHANGE_PERIOD_S = 0.2  # engines hear no more often of trees that are complete
_START_DELAY = 64  # tokens, as in training

_QUANTA = 128  # that the longest response is counted in
_STEPS_OF_A_RESPONSE = 8
_MOST_ENGINES = 8
_MOST_TREES = 128


@dataclass(frozen=True)
class Workload:
    """What is sampled, in tokens.

    Attributes:
        lengths: of responses.
        prompt: of a prompt.
        step: of a reasoning step.
        quantum: tokens that everything is counted in.
    """

    lengths: ResponseLengths
    prompt: float
    step: float
    quantum: int

    def quanta(self, tokens: float) -> int:
        """At least one."""
        return max(1, round(tokens / self.quantum))

    def engines(self, model: EngineModel, count: int) -> SimulatedEngines:
        """Engines that are idle, and sample such responses; each holds one of them at least."""
        longest = (self.quanta(self.prompt) + self.quanta(self.lengths.cap) + 1) * self.quantum
        model = replace(model, cache_tokens=max(model.cache_tokens, longest))
        length_of = length_in_quanta(self.lengths, self.quanta(self.prompt), self.quantum)
        return SimulatedEngines(model, count, length_of, self.quantum)


@dataclass(frozen=True)
class SampledStep:
    """The mean of some steps.

    Attributes:
        seconds: of a step.
        tokens: that engines drew for it, what they drew beyond a cut included.
        sequences: that an engine decoded at once, mean over time.
    """

    seconds: float
    tokens: float
    sequences: float


@lru_cache(maxsize=4096)
def sampling_seconds(
    model: EngineModel,
    engines: int,
    trees: int,
    in_flight: int | None,
    sampler: SamplerConfig,
    ib_score: IBScoreConfig,
    lengths: ResponseLengths,
    prompt: float,
) -> float:
    """Seconds of sampling the trees of a step.

    Args:
        model: of each engine.
        engines: how many there are.
        trees: of a step, on each engine.
        in_flight: trees that grow at once on each engine, unfinished ones being carried over; None without that.
        sampler, ib_score: of the run.
        lengths: of responses.
        prompt: mean tokens of a prompt.
    """
    if trees > _MOST_TREES:
        half, share = _MOST_TREES // 2, (in_flight or 0) / trees
        fewer, most = (
            sampling_seconds(model, engines, some, round(share * some) or None, sampler, ib_score, lengths, prompt)
            for some in (half, _MOST_TREES)
        )
        return most + (trees - _MOST_TREES) / half * (most - fewer)
    simulated = max(1, min(engines, _MOST_ENGINES, _MOST_TREES // trees))
    step = sampler.segment_tokens or lengths.mean / _STEPS_OF_A_RESPONSE
    workload = Workload(lengths, prompt, step, -(-lengths.cap // _QUANTA))
    return simulate_steps(
        workload,
        workload.engines(model, simulated),
        trees * simulated,
        None if in_flight is None else in_flight * simulated,
        sampler,
        ib_score,
    ).seconds


def simulate_steps(
    workload: Workload,
    engines: SimulatedEngines,
    trees: int,
    in_flight: int | None,
    sampler: SamplerConfig,
    ib_score: IBScoreConfig,
    *,
    steps: int = _STEPS,
    seed: int = 0,
) -> SampledStep:
    """Sample so many steps, with trees carried over some others before.

    Args:
        workload: what is sampled.
        engines: of :meth:`Workload.engines`.
        trees: of a step, on all engines.
        in_flight: trees that grow at once, unfinished ones being carried over; None without that.
        sampler, ib_score: decide where trees branch.
        steps: that are measured.
        seed: of the first step.
    """
    step, longest = workload.quanta(workload.step), workload.quanta(workload.lengths.cap)
    parts: dict[str, Any] = {
        "source": engines,
        "rewards": _Verdicts(),
        "strategy": make_strategy(replace(sampler, min_new_tokens=min(step, longest)), ib_score, longest),
        "splitter": FixedWidthSplitter(step),
        "max_new_tokens": longest,
        "idle_s": 0.0,
    }
    tasks = _tasks(workload.quanta(workload.prompt))
    if in_flight is None:
        most = sampler.max_trees_in_flight * engines.count
        sample = _whole_steps(tasks, trees, most, seed, parts)
    else:
        lag = max(sampler.max_policy_lag, least_policy_lag(trees, in_flight, 1))
        delay = _START_DELAY // workload.quantum
        sample = _carried_steps(tasks, TreesInFlight(trees, in_flight, lag, 1), seed, engines, delay, parts)
        for _ in range(_STEPS_BEFORE):
            next(sample)
            engines.synchronize()
    before = _Reading(engines)
    for _ in range(steps):
        next(sample)
        engines.synchronize()
    return before.until_now(engines, steps, workload.quantum)


def _whole_steps(
    tasks: Iterator[GrowthTask], trees: int, most: int, seed: int, parts: dict[str, Any]
) -> Iterator[None]:
    """Steps that begin and complete their trees, as many of them at once as may be in flight."""
    for step in count():
        grow([next(tasks) for _ in range(trees)], seed=seed + step, max_in_flight=most, **parts)
        yield


def _carried_steps(
    tasks: Iterator[GrowthTask],
    flight: TreesInFlight,
    seed: int,
    engines: SimulatedEngines,
    start_delay: int,
    parts: dict[str, Any],
) -> Iterator[None]:
    """Steps that close when enough trees are complete."""
    known: dict[str, GrowthTask] = {}
    for step in count():
        drawn = [next(tasks) for _ in range(flight.missing)]
        known |= {task.prompt_id: task for task in drawn}
        closing = flight.begin([task.prompt_id for task in drawn], seed=seed + step, version=step)
        ended = grow_until_closed(
            dict(enumerate(flight.trees)),
            known,
            closing,
            exchange_period_s=_EXCHANGE_PERIOD_S,
            now=lambda: engines.now,
            start_delay=start_delay,
            **parts,
        )
        flight.end(ended.carried)
        yield


class _Reading:
    """What engines had done at a moment."""

    def __init__(self, engines: SimulatedEngines) -> None:
        self._seconds = engines.now
        self._tokens = engines.sampled
        self._sequences = engines.places

    def until_now(self, engines: SimulatedEngines, steps: int, quantum: int) -> SampledStep:
        """What they have done since, in so many steps."""
        seconds = engines.now - self._seconds
        return SampledStep(
            seconds / steps,
            (engines.sampled - self._tokens) * quantum / steps,
            (engines.places * engines.now - self._sequences * self._seconds) / seconds,
        )


class _Verdicts:
    """A ``RewardSource``."""

    def __init__(self) -> None:
        self._ready: list[tuple[Hashable, float]] = []

    def submit(self, key: Hashable, prompt_id: str, response_tokens: tuple[int, ...]) -> None:
        """Judge a response."""
        chance = random.Random(prompt_id).random()
        self._ready.append((key, float(random.Random(f"{prompt_id} {len(response_tokens)}").random() < chance)))

    def poll(self) -> list[tuple[Hashable, float]]:
        """The verdicts."""
        ready, self._ready = self._ready, []
        return ready


def _tasks(length: int) -> Iterator[GrowthTask]:
    number = 0
    while True:
        first = -(number + 1) * length
        yield GrowthTask(str(number), tuple(range(first, first + length)))
        number += 1
