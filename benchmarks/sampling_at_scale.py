"""Sampling of trees against independent responses on GPUs that are not there: real growth, engines in virtual time.

Two fleets of eight engines, with the memory and the speed that the planner works out for the recipes: an 8B model on
one node, and a 70B model on eight nodes, eight GPUs an engine. Responses are log-normal, with a mean of 1,000 tokens
and at most 2,048, or of 4,000 and at most 16,384; a branch samples a uniform share of a response. Side by side: 8 and
12 independent responses, trees of 12 trajectories grown serially and with windows of 2, 4, 8 and 12, trees of 10
trajectories of which 6 start at the prompt (``start_6``), with a window of 4 also 1.25, 1.5 and 2 times the trees of
a step in flight, and with one of 2 also 1.25 times.

Lengths are counted in quanta of some tokens, so that 64 prompts a step take a minute of a processor core. The last
line is JSON: by fleet and prompts (the long responses marked), by sampler, wall time and tokens of a step over those
of 8 independent responses, the share of the engines' places that was taken over the step, and the seconds that
`nemo-ibtpo plan` would predict over those that were simulated. What carry-over draws beyond a cut counts as tokens.
`growth_share` is the share of a processor core that growth takes, the simulation left out, with 512 prompts a step on
one engine that is asked after each of its decode steps.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

from measure import report
from workloads import IB_SCORE, defaults

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import SamplerConfig
from nemo_ibtpo.planning.assumptions import Assumptions
from nemo_ibtpo.planning.engine_model import EngineModel, engine_model
from nemo_ibtpo.planning.memory import engine_memory
from nemo_ibtpo.planning.model_shape import find_config, shape_of
from nemo_ibtpo.planning.response_lengths import ResponseLengths, length_in_quanta
from nemo_ibtpo.planning.sampling import TreeShape, sampling_seconds
from nemo_ibtpo.planning.simulated_engine import SimulatedEngines
from nemo_ibtpo.tree import growth
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.carry_over import grow_until_closed
from nemo_ibtpo.tree.growth import GrowthTask, grow
from nemo_ibtpo.tree.rollouts import Rollout
from nemo_ibtpo.tree.steps import FixedWidthSplitter
from nemo_ibtpo.tree.trees_in_flight import TreesInFlight

growth._IDLE_S = 0.0  # virtual time does not pass while growth waits

ENGINES = 8
MAX_BATCH = 256
PROMPT_TOKENS = 256
SIGMA = 0.7  # of the logarithm of a response's length
FLEETS = {"8b": "ibtpo-llama-3.1-8b-instruct-1n8g-tp2pp1", "70b": "ibtpo-llama-3.3-70b-instruct-8n8g-tp8pp4"}
STEPS = 3  # that are measured
STEPS_BEFORE = 2  # with trees carried over, to get going
EXCHANGE_PERIOD_S = 0.2  # engines hear no more often of trees that are complete
START_DELAY = 64  # tokens, as in training


@dataclass(frozen=True)
class Responses:
    """Of one kind.

    Attributes:
        lengths: in tokens.
        step: tokens of a reasoning step.
        quantum: tokens that everything is counted in.
    """

    lengths: ResponseLengths
    step: int
    quantum: int


RESPONSES = {
    "short": Responses(ResponseLengths(1_000, 2_048, SIGMA), 128, 32),
    "long": Responses(ResponseLengths(4_000, 16_384, SIGMA), 512, 128),
}


def engine_of(recipe: str) -> EngineModel:
    """The engine that the planner works out for a recipe, on H100 GPUs."""
    config = compose(recipe, [])
    shape, assumptions = shape_of(find_config(config.model.path)[0]), Assumptions()
    memory = engine_memory(config, shape, assumptions)
    return engine_model(shape, memory, config.rollout.tensor_parallel_size, MAX_BATCH, assumptions)


def engines_for(model: EngineModel, responses: Responses, engines: int = ENGINES) -> SimulatedEngines:
    """Engines that are idle, and sample such responses."""
    prompt = PROMPT_TOKENS // responses.quantum
    return SimulatedEngines(
        model, engines, length_in_quanta(responses.lengths, prompt, responses.quantum), responses.quantum
    )


class Verdicts:
    """A prompt is solved with a probability of its own; the verdict comes at once."""

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


def sampler(name: str, window: int | None = None, initial: int = 4, trajectories: int = 12) -> SamplerConfig:
    """The defaults with another window; steps are segments."""
    config = SamplerConfig(**defaults(f"sampler/{name}"))
    rounds = 1 + trajectories - initial if name == "ib" else 1
    return replace(config, initial_rollouts=initial, rounds=rounds, max_sequences_per_tree=window)


SAMPLERS = {
    "independent_8": (sampler("independent", initial=8), 0.0),
    "independent_12": (sampler("independent", initial=12), 0.0),
    "serial": (sampler("ib", 1), 0.0),
    "window_2": (sampler("ib", 2), 0.0),
    "window_4": (sampler("ib", 4), 0.0),
    "window_8": (sampler("ib", 8), 0.0),
    "window_12": (sampler("ib", 12), 0.0),
    "start_6": (sampler("ib", 10, initial=6, trajectories=10), 0.0),
    "carry_1.25_window_2": (sampler("ib", 2), 0.25),
    "carry_1.25": (sampler("ib", 4), 0.25),
    "carry_1.5": (sampler("ib", 4), 0.5),
    "carry_2": (sampler("ib", 4), 1.0),
}


@dataclass(frozen=True)
class Cost:
    """Of a step.

    Attributes:
        wall_s: seconds of sampling.
        tokens: drawn.
        occupancy: share of the engines' places that was taken.
        cpu_s: processor time of growth and simulation, of all steps.
    """

    wall_s: float
    tokens: float
    occupancy: float
    cpu_s: float


class TimedEngines(SimulatedEngines):
    """Engines that know what processor time simulating them takes."""

    simulation_s = 0.0

    def poll(self) -> list[Rollout]:
        """See :class:`SimulatedEngines`."""
        began = time.process_time()
        rollouts = super().poll()
        self.simulation_s += time.process_time() - began
        return rollouts


def simulate(
    model: EngineModel,
    responses: Responses,
    prompts: int,
    config: SamplerConfig,
    carry_over: float,
    engines: SimulatedEngines | None = None,
    steps: int = STEPS,
) -> Cost:
    """Sample so many steps, with trees carried over some others before; the mean of a step."""
    engines = engines or engines_for(model, responses)
    config = replace(config, min_new_tokens=responses.step // responses.quantum)
    longest = responses.lengths.cap // responses.quantum
    parts = {
        "source": engines,
        "rewards": Verdicts(),
        "strategy": make_strategy(config, IB_SCORE, longest),
        "splitter": FixedWidthSplitter(responses.step // responses.quantum),
        "max_new_tokens": longest,
    }
    began, tasks = time.process_time(), _tasks(PROMPT_TOKENS // responses.quantum)

    def cost(before: tuple[float, int, float]) -> Cost:
        seconds = engines.now - before[0]
        places = (engines.places * engines.now - before[2] * before[0]) / seconds
        tokens = (engines.sampled - before[1]) * responses.quantum
        return Cost(seconds / steps, tokens / steps, places / MAX_BATCH, time.process_time() - began)

    if not carry_over:
        for step in range(steps):
            grow([next(tasks) for _ in range(prompts)], seed=step, max_in_flight=prompts, **parts)
            engines.synchronize()
        return cost((0.0, 0, 0.0))
    in_flight = TreesInFlight(prompts, prompts + int(carry_over * prompts), max_policy_lag=8, updates_per_step=1)
    known: dict[str, GrowthTask] = {}
    for step in range(STEPS_BEFORE + steps):
        if step == STEPS_BEFORE:
            before = engines.now, engines.sampled, engines.places
        drawn = [next(tasks) for _ in range(in_flight.missing)]
        known |= {task.prompt_id: task for task in drawn}
        closing = in_flight.begin([task.prompt_id for task in drawn], seed=step, version=step)
        trees = dict(enumerate(in_flight.trees))
        step_of_trees = grow_until_closed(
            trees,
            known,
            closing,
            exchange_period_s=EXCHANGE_PERIOD_S,
            now=lambda: engines.now,
            start_delay=START_DELAY // responses.quantum,
            **parts,
        )
        in_flight.end(step_of_trees.carried)
        engines.synchronize()
    return cost(before)


def planned(
    model: EngineModel, responses: Responses, prompts: int, config: SamplerConfig, carry_over: float
) -> float:
    """Seconds of a step as `nemo-ibtpo plan` predicts them."""
    branches = config.trajectories_per_prompt - config.initial_rollouts
    shape = TreeShape(config.initial_rollouts, branches, 1, config.max_sequences_per_tree)
    trees = prompts // ENGINES
    in_flight = trees + int(carry_over * prompts) // ENGINES
    return sampling_seconds(
        model, ENGINES, trees, in_flight, shape, responses.lengths, PROMPT_TOKENS, carried=carry_over > 0
    )


def growth_share(name: str) -> float:
    """Share of a core that growth takes with 512 prompts a step on one engine, which draws token by token."""
    model, responses = engine_of(FLEETS["8b"]), replace(RESPONSES["short"], step=64, quantum=1)
    engine = TimedEngines(model, 1, length_in_quanta(responses.lengths, PROMPT_TOKENS, 1), 1)
    cost = simulate(model, responses, 512, *SAMPLERS[name], engine, steps=1)
    return (cost.cpu_s - engine.simulation_s) / engine.now


def _tasks(length: int) -> Iterator[GrowthTask]:
    number = 0
    while True:
        first = -(number + 1) * length
        yield GrowthTask(str(number), tuple(range(first, first + length)))
        number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fleets", nargs="*", choices=FLEETS, default=list(FLEETS))
    parser.add_argument("--samplers", nargs="*", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--responses", nargs="*", choices=RESPONSES, default=list(RESPONSES))
    parser.add_argument("--prompts", nargs="*", type=int, default=[64])
    parser.add_argument("--growth-share", nargs="*", choices=SAMPLERS, default=["window_4"], metavar="SAMPLER")
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for fleet in options.fleets:
        model = engine_of(FLEETS[fleet])
        for mix in options.responses:
            for prompts in options.prompts:
                costs = {
                    name: simulate(model, RESPONSES[mix], prompts, config, carry_over)
                    for name, (config, carry_over) in SAMPLERS.items()
                    if name in {"independent_8", *options.samplers}
                }
                plans = {name: planned(model, RESPONSES[mix], prompts, *SAMPLERS[name]) for name in costs}
                base = costs["independent_8"]
                setting = f"{fleet}_{prompts}" + ("_long" if mix == "long" else "")
                found[setting] = {
                    name: {
                        "wall_ratio": round(cost.wall_s / base.wall_s, 3),
                        "token_ratio": round(cost.tokens / base.tokens, 3),
                        "occupancy": round(cost.occupancy, 3),
                        "planned_ratio": round(plans[name] / cost.wall_s, 3),
                    }
                    for name, cost in costs.items()
                }
                for name, cost in costs.items():
                    report(
                        setting=setting, sampler=name, wall_s=cost.wall_s, cpu_s=cost.cpu_s, **found[setting][name]
                    )
    shares = {name: round(growth_share(name), 4) for name in options.growth_share}
    print(json.dumps(found | {"growth_share": shares}))


if __name__ == "__main__":
    main()
