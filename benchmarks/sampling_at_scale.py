"""Sampling of trees against independent responses on GPUs that are not there: real growth, engines in virtual time.

Two fleets of eight engines, with the memory and the speed that the planner works out for the recipes: an 8B model on
one node, and a 70B model on eight nodes, eight GPUs an engine. Responses are log-normal, with a mean of 1,000 tokens
and at most 2,048, or of 4,000 and at most 16,384; a branch samples a uniform share of a response. Side by side: 8 and
12 independent responses, trees of 12 trajectories grown serially and with windows of 2, 4, 8 and 12, trees of 10
trajectories of which 6 start at the prompt (``start_6``), with a window of 8 also 1.25, 1.5 and 2 times the trees of
a step in flight, with one of 4 also 1.5 times, and 1.5 times 8 independent responses. With trees carried over a token
is at most four policies old, which seldom makes a step wait.

Lengths are counted in quanta of some tokens, and settings are spread over the processor's cores, so that 64 prompts a
step take less than a minute. The last line is JSON: by fleet and prompts (the long responses marked), by sampler,
wall time and tokens of a step over those of 8 independent responses, and the share of the engines' places that was
taken over the step. With ``--plan`` also the seconds that `nemo-ibtpo plan` predicts over those that were simulated:
the plan simulates the same growth with other random lengths, perhaps in coarser quanta. What carry-over draws beyond
a cut counts as tokens. `growth_share` is the share of a processor core that growth takes, the simulation left out,
with 512 prompts a step on one engine that is asked after each of its decode steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from concurrent.futures import ProcessPoolExecutor
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
from nemo_ibtpo.planning.sampling import SampledStep, Workload, sampling_seconds, simulate_steps
from nemo_ibtpo.planning.simulated_engine import SimulatedEngines
from nemo_ibtpo.tree.rollouts import Rollout

ENGINES = 8
MAX_BATCH = 256
PROMPT_TOKENS = 256
SIGMA = 0.7  # of the logarithm of a response's length
FLEETS = {"8b": "ibtpo-llama-3.1-8b-instruct-1n8g-tp2pp1", "70b": "ibtpo-llama-3.3-70b-instruct-8n8g-tp8pp4"}
STEPS = 4  # that are measured
SEED = 1_000  # not a plan's
MAX_POLICY_LAG = 4
WORKLOADS = {
    "short": Workload(ResponseLengths(1_000, 2_048, SIGMA), PROMPT_TOKENS, 128, 32),
    "long": Workload(ResponseLengths(4_000, 16_384, SIGMA), PROMPT_TOKENS, 512, 128),
}


def engine_of(recipe: str) -> EngineModel:
    """The engine that the planner works out for a recipe, on H100 GPUs."""
    config = compose(recipe, [])
    shape, assumptions = shape_of(find_config(config.model.path)[0]), Assumptions()
    memory = engine_memory(config, shape, assumptions)
    return engine_model(shape, memory, config.rollout.tensor_parallel_size, MAX_BATCH, assumptions)


def sampler(name: str, window: int | None = None, initial: int = 4, trajectories: int = 12) -> SamplerConfig:
    """The defaults with another window."""
    config = SamplerConfig(**defaults(f"sampler/{name}"))
    rounds = 1 + trajectories - initial if name == "ib" else 1
    return replace(
        config, initial_rollouts=initial, rounds=rounds, max_sequences_per_tree=window, max_policy_lag=MAX_POLICY_LAG
    )


BASE = "independent_8"
SAMPLERS = {
    BASE: (sampler("independent", initial=8), 0.0),
    "independent_12": (sampler("independent", initial=12), 0.0),
    "independent_carry_1.5": (sampler("independent", initial=8), 0.5),
    "serial": (sampler("ib", 1), 0.0),
    "window_2": (sampler("ib", 2), 0.0),
    "window_4": (sampler("ib", 4), 0.0),
    "window_8": (sampler("ib", 8), 0.0),
    "window_12": (sampler("ib", 12), 0.0),
    "start_6": (sampler("ib", 10, initial=6, trajectories=10), 0.0),
    "carry_1.5_window_4": (sampler("ib", 4), 0.5),
    "carry_1.25": (sampler("ib", 8), 0.25),
    "carry_1.5": (sampler("ib", 8), 0.5),
    "carry_2": (sampler("ib", 8), 1.0),
}


class TimedEngines(SimulatedEngines):
    """Engines that know what processor time simulating them takes."""

    simulation_s = 0.0

    def poll(self) -> list[Rollout]:
        """See :class:`SimulatedEngines`."""
        began = time.process_time()
        rollouts = super().poll()
        self.simulation_s += time.process_time() - began
        return rollouts


@dataclass(frozen=True)
class Setting:
    """One row.

    Attributes:
        fleet, responses, sampler: names.
        prompts: of a step.
    """

    fleet: str
    responses: str
    prompts: int
    sampler: str

    @property
    def in_flight(self) -> int | None:
        """Trees, where unfinished ones are carried over."""
        share = SAMPLERS[self.sampler][1]
        return self.prompts + int(share * self.prompts) if share else None


def simulate(setting: Setting, steps: int) -> SampledStep:
    """Sample such steps."""
    workload, (config, _) = WORKLOADS[setting.responses], SAMPLERS[setting.sampler]
    engines = workload.engines(engine_of(FLEETS[setting.fleet]), ENGINES)
    config = replace(config, max_trees_in_flight=setting.prompts)
    return simulate_steps(
        workload, engines, setting.prompts, setting.in_flight, config, IB_SCORE, steps=steps, seed=SEED
    )


def planned(setting: Setting) -> float:
    """Seconds of a step as `nemo-ibtpo plan` predicts them."""
    each = None if setting.in_flight is None else setting.in_flight // ENGINES
    return sampling_seconds(
        engine_of(FLEETS[setting.fleet]),
        ENGINES,
        setting.prompts // ENGINES,
        each,
        SAMPLERS[setting.sampler][0],
        IB_SCORE,
        WORKLOADS[setting.responses].lengths,
        PROMPT_TOKENS,
    )


def growth_share(name: str) -> float:
    """Share of a core that growth takes with 512 prompts a step on one engine, which draws token by token."""
    workload = replace(WORKLOADS["short"], step=64, quantum=1)
    engines = TimedEngines(
        engine_of(FLEETS["8b"]), 1, length_in_quanta(workload.lengths, PROMPT_TOKENS, 1), workload.quantum
    )
    config = replace(SAMPLERS[name][0], max_trees_in_flight=512)
    began = time.process_time()
    simulate_steps(workload, engines, 512, None, config, IB_SCORE, steps=1)
    return (time.process_time() - began - engines.simulation_s) / engines.now


def measure(setting: Setting, steps: int, *, plan: bool) -> tuple[SampledStep, float]:
    """The steps, and predicted over simulated seconds; 0 where that is not asked for."""
    step = simulate(setting, steps)
    return step, planned(setting) / step.seconds if plan else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fleets", nargs="*", choices=FLEETS, default=list(FLEETS))
    parser.add_argument("--samplers", nargs="*", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--responses", nargs="*", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--prompts", nargs="*", type=int, default=[64])
    parser.add_argument("--steps", type=int, default=STEPS, help="that are measured (default: %(default)s)")
    parser.add_argument("--plan", action="store_true", help="also print planned_ratio, which takes as long again")
    parser.add_argument("--growth-share", nargs="*", choices=SAMPLERS, default=["window_4"], metavar="SAMPLER")
    options = parser.parse_args()
    names = [name for name in SAMPLERS if name in {BASE, *options.samplers}]
    grid = list(itertools.product(options.fleets, options.responses, options.prompts))
    found: dict[str, dict[str, dict[str, float]]] = {}
    with ProcessPoolExecutor() as pool:
        jobs = {
            where: {
                name: pool.submit(measure, Setting(*where, name), options.steps, plan=options.plan) for name in names
            }
            for where in grid
        }
        for (fleet, mix, prompts), each in jobs.items():
            setting = f"{fleet}_{prompts}" + ("_long" if mix == "long" else "")
            base = each[BASE].result()[0]
            found[setting] = {}
            for name, job in each.items():
                step, ratio = job.result()
                found[setting][name] = {
                    "wall_ratio": round(step.seconds / base.seconds, 3),
                    "token_ratio": round(step.tokens / base.tokens, 3),
                    "occupancy": round(step.sequences / MAX_BATCH, 3),
                } | ({"planned_ratio": round(ratio, 3)} if options.plan else {})
                report(setting=setting, sampler=name, wall_s=step.seconds, **found[setting][name])
    shares = {name: round(growth_share(name), 4) for name in options.growth_share}
    print(json.dumps(found | {"growth_share": shares}))


if __name__ == "__main__":
    main()
