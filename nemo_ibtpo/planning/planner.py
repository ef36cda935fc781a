"""A configuration on so many GPUs: does it fit, how long does a step take, and what would fit."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.layout import check_model, check_world_size, fewest_ranks, trajectory_tokens
from nemo_ibtpo.config.rope import positions
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.planning.assumptions import Assumptions
from nemo_ibtpo.planning.memory import MemoryPlan, plan_memory, shortage
from nemo_ibtpo.planning.model_shape import ModelShape, assumed_through_bridge, shape_of
from nemo_ibtpo.planning.parameters import Layout, layout_of
from nemo_ibtpo.planning.timing import Work, predict_seconds, work_of

_LENGTH_MULTIPLE = 128  # FlexAttention's blocks; a smaller micro-batch is padded to it anyway


@dataclass(frozen=True)
class Plan:
    """What a configuration amounts to.

    Attributes:
        positions: tokens of the longest sequence that the model is made for.
        problem: why it does not fit; None if it does.
    """

    config: RunConfig
    world_size: int
    shape: ModelShape
    positions: int
    layout: Layout
    work: Work
    memory: MemoryPlan
    problem: str | None
    assumptions: Assumptions

    @cached_property
    def seconds(self) -> Mapping[str, float]:
        """Of each phase of a step."""
        return predict_seconds(
            self.config, self.shape, self.layout, self.world_size, self.work, self.memory.engine, self.assumptions
        )

    @property
    def step_seconds(self) -> float:
        """Seconds of a whole step."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Lengths:
    """Mean lengths in tokens that are expected; None is the longest that the configuration allows."""

    prompt: float | None = None
    response: float | None = None


def make_plan(
    config: RunConfig, hf_config: dict[str, Any], world_size: int, assumptions: Assumptions, lengths: Lengths
) -> Plan:
    """Plan a configuration; ``hf_config`` is its model's.

    Raises:
        UserError: the layout contradicts the model or the number of GPUs.
    """
    check_world_size(config, world_size)
    check_model(config, hf_config)
    shape, layout = shape_of(hf_config, config.model.provider), layout_of(config, world_size)
    work = work_of(config, layout, assumptions, lengths.prompt, lengths.response)
    memory = plan_memory(config, shape, layout, work.passes, assumptions)
    problem = shortage(config, memory, assumptions)
    return Plan(config, world_size, shape, positions(hf_config), layout, work, memory, problem, assumptions)


def twin_of(plan: Plan, *, carry_over: float = 0.0) -> Plan | None:
    """The same with independent responses at equal tokens, as GRPO samples them; None for a plan without branches.

    Args:
        plan: of trees.
        carry_over: unfinished groups of responses in flight, as ``sampler.carry_over`` counts trees.
    """
    sampler, share = plan.config.sampler, plan.assumptions.branch_share
    branches = sampler.trajectories_per_prompt - sampler.initial_rollouts
    if not branches:
        return None
    independent = {
        "sampler.name": "independent",
        "sampler.initial_rollouts": round(sampler.initial_rollouts + share * branches),
        "sampler.rounds": 1,
        "sampler.max_sequences_per_tree": None,
        "sampler.carry_over": carry_over,
    }
    return dataclasses.replace(plan, config=changed(plan.config, independent))


def default_world_size(config: RunConfig) -> int:
    """What a name such as ``ibtpo-qwen3-8b-2n8g-tp4pp1`` says, else the fewest ranks that hold the model."""
    match = re.search(r"(?:^|-)(\d+)n(\d+)g(?:-|$)", config.name)
    return int(match[1]) * int(match[2]) if match else max(1, fewest_ranks(config))


def suggest(
    config: RunConfig, hf_config: dict[str, Any], world_size: int, assumptions: Assumptions, lengths: Lengths
) -> tuple[dict[str, Any], Plan] | None:
    """The fewest changes that fit, among these the fastest step; each has been planned again.

    Searched are recomputation, the size of micro-batches, the engine's share and ranks, tensor- and pipeline-parallel
    ranks, and last twice, four and eight times the GPUs.
    """
    for factor in (1, 2, 4, 8):
        fitting = _fitting(config, hf_config, factor * world_size, assumptions, lengths)
        for _, equally_many in itertools.groupby(fitting, key=lambda option: len(option[0])):
            return min(equally_many, key=lambda option: option[1].step_seconds)
    return None


def _fitting(
    config: RunConfig, hf_config: dict[str, Any], world_size: int, assumptions: Assumptions, lengths: Lengths
) -> Iterator[tuple[dict[str, Any], Plan]]:
    for changes in sorted(_candidates(config, world_size, assumptions), key=len):
        try:
            plan = make_plan(changed(config, changes), hf_config, world_size, assumptions, lengths)
        except UserError:  # a layout that this model or world does not take
            continue
        if plan.problem is None:
            yield changes, plan


def _candidates(config: RunConfig, world_size: int, assumptions: Assumptions) -> Iterator[dict[str, Any]]:
    actor, rollout = config.actor, config.rollout
    tensor, pipeline = actor.tensor_model_parallel_size, actor.pipeline_model_parallel_size
    node = int(assumptions.gpus_per_node)
    budgets = _budgets(actor.max_tokens_per_microbatch, trajectory_tokens(config))
    shares = [rollout.vllm.gpu_memory_utilization]
    if rollout.engine == "vllm" and actor.device != "cpu":
        shares += [share for share in (0.6, 0.4, 0.3, 0.2) if share != shares[0]]
    engines = _doublings(node) if rollout.engine == "vllm" else []
    for recompute, budget, share, engine, t, p in itertools.product(
        dict.fromkeys((actor.recompute, "full")),
        budgets,
        shares,
        dict.fromkeys((rollout.tensor_parallel_size, *engines)),
        dict.fromkeys((tensor, *(size for size in _doublings(node) if size > tensor))),
        dict.fromkeys((pipeline, *(size for size in _doublings(world_size) if size > pipeline))),
    ):
        wanted = {
            "actor.recompute": recompute,
            "actor.max_tokens_per_microbatch": budget,
            "rollout.vllm.gpu_memory_utilization": share,
            "rollout.tensor_parallel_size": engine,
            "actor.tensor_model_parallel_size": t,
            "actor.pipeline_model_parallel_size": p,
            "actor.sequence_parallel": actor.sequence_parallel or t > tensor,
        }
        yield {key: value for key, value in wanted.items() if value != _get(config, key)}


def _budgets(now: int, longest: int) -> Sequence[int]:
    smallest = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    return [now, *(size for size in (now // 2, now // 4, smallest) if smallest <= size < now)]


def _doublings(limit: int) -> list[int]:
    return [2**i for i in range(limit.bit_length()) if 2**i <= limit]


def _get(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """The configuration with other values at these dotted keys."""
    for key, value in changes.items():
        config = _changed(config, key.split("."), value)
    return config


def _changed(section: Any, path: Sequence[str], value: Any) -> Any:
    name, *rest = path
    return dataclasses.replace(section, **{name: _changed(getattr(section, name), rest, value) if rest else value})


def source_of(plan: Plan, file: Path) -> str:
    """Where a model's sizes were found, in words, and what was assumed of it."""
    model = plan.config.model
    local = file == Path(model.path) / "config.json"
    source = f"{file}" if local else f"the card {file} ({model.path} is not there)"
    return source if model.provider == "own" else f"{source}; {assumed_through_bridge(plan.shape)}"
