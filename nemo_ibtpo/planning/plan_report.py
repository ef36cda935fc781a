"""A plan in words and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from nemo_ibtpo.config.batch_plan import batch_plan
from nemo_ibtpo.planning.assumptions import GIB, Assumptions
from nemo_ibtpo.planning.longest_paths import RECOMPUTE, RESPONSES, LongestPath, least_that_hold, longest_paths
from nemo_ibtpo.planning.planner import Plan, twin_of

Suggestion = tuple[dict[str, Any], Plan] | None


def as_text(plan: Plan, source: str, assumptions: Assumptions, suggestion: Suggestion) -> str:
    """Several lines for a reader."""
    return "\n".join(
        [
            batch_plan(plan.config, plan.world_size),
            f"  shape    {plan.shape.parameters / 1e9:.2f} B parameters, from {source}",
            "",
            *_memory(plan, assumptions),
            "",
            *_seconds(plan),
            "",
            *_longest_paths(plan, assumptions),
            "",
            *_verdict(plan, suggestion, assumptions),
            "",
            "assumed: " + ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(assumptions).items()),
            "options of these names change them; docs/planning.md says how far off predictions were",
        ]
    )


def as_json(plan: Plan, source: str, assumptions: Assumptions, suggestion: Suggestion) -> str:
    """The same figures for a program: bytes, seconds, tokens."""
    return json.dumps(
        {
            "name": plan.config.name,
            "world_size": plan.world_size,
            "parameters": plan.shape.parameters,
            "model_source": source,
            "fits": plan.problem is None,
            "problem": plan.problem,
            "memory_bytes": {phase.name: dict(phase.parts) for phase in plan.memory.phases},
            "worst_phase": plan.memory.worst.name,
            "engine_cache_tokens": plan.memory.engine.cache_tokens,
            "host_bytes": dict(plan.memory.host),
            "host_bytes_of_a_node": _node_bytes(plan, assumptions),
            "tokens": dataclasses.asdict(plan.work),
            "seconds": dict(plan.seconds),
            "longest_paths": [dataclasses.asdict(path) for path in _paths(plan, assumptions)],
            "step_seconds": plan.step_seconds,
            "grpo_step_seconds": None if (twin := twin_of(plan)) is None else twin.step_seconds,
            "grpo_carried_step_seconds": None if (twin := _carried_twin(plan)) is None else twin.step_seconds,
            "suggestion": None if suggestion is None else _suggested(suggestion),
            "assumptions": dataclasses.asdict(assumptions),
        },
        indent=2,
    )


def _memory(plan: Plan, assumptions: Assumptions) -> Iterator[str]:
    worst = plan.memory.worst
    yield "memory of a GPU at its fullest, GiB (the fullest pipeline stage of each phase)"
    for phase in plan.memory.phases:
        mark = f" <- the most, of {assumptions.gpu_memory_gb:g}" if phase is worst else ""
        parts = " + ".join(f"{name} {size / GIB:.1f}" for name, size in phase.parts.items() if size)
        yield f"  {phase.name:<11}{phase.total / GIB:6.1f} = {parts}{mark}"
    engine = plan.memory.engine
    yield f"  the engine's keys and values have room for {engine.cache_tokens:,} tokens"
    host = " + ".join(f"{name} {size / GIB:.1f}" for name, size in plan.memory.host.items() if size)
    node = _node_bytes(plan, assumptions) / GIB
    yield f"  host memory of a rank: {host or 'nothing'}; of a node: at most {node:.1f}"


def _node_bytes(plan: Plan, assumptions: Assumptions) -> float:
    """Host memory of a node whose ranks all take as much as the one that takes the most."""
    return sum(plan.memory.host.values()) * min(plan.world_size, assumptions.gpus_per_node)


def _seconds(plan: Plan) -> Iterator[str]:
    work = plan.work
    yield (
        f"a step of {work.sampled:,.0f} sampled and {work.trained:,.0f} trained tokens (prompts {work.prompt:,.0f}, "
        f"responses of {work.response:,.0f} in the mean), {work.updates} x {work.passes} micro-batches a rank: about "
        f"{plan.step_seconds:,.1f} s"
    )
    yield "  " + ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in plan.seconds.items())
    if twin := twin_of(plan):
        text = f"GRPO at equal tokens, {twin.config.sampler.initial_rollouts} independent responses a prompt: about "
        text += _step_and_rollout(twin)
        if carried := _carried_twin(plan):
            text += f"; carried over, too, {_step_and_rollout(carried)}"
        yield text


def _carried_twin(plan: Plan) -> Plan | None:
    """GRPO's step with unfinished groups carried over as the plan's trees are; None where none are."""
    carry_over = plan.config.sampler.carry_over
    return twin_of(plan, carry_over=carry_over) if carry_over else None


def _step_and_rollout(plan: Plan) -> str:
    return f"{plan.step_seconds:,.1f} s (rollout {plan.seconds['rollout']:,.1f} s)"


def _paths(plan: Plan, assumptions: Assumptions) -> tuple[LongestPath, ...]:
    return longest_paths(plan.config, plan.shape, plan.world_size, assumptions)


def _longest_paths(plan: Plan, assumptions: Assumptions) -> Iterator[str]:
    paths, prompt = _paths(plan, assumptions), plan.config.data.max_prompt_tokens
    yield "longest path that log-probs and training hold, prompt included, in tokens, by actor.recompute"
    yield "  context-parallel ranks" + "".join(f"{kind:>12}" for kind in RECOMPUTE)
    for path in paths:
        gpus = "" if path.gpus == plan.world_size else f"   on {path.gpus} GPUs"
        yield f"  {path.context:<22}" + "".join(f"{path.tokens[kind]:12,}" for kind in RECOMPUTE) + gpus
    for response in RESPONSES:
        least = [f"{kind} on {path.context}" for kind, path in least_that_hold(paths, prompt + response)]
        held = ", ".join(least) if least else f"none of these on up to {paths[-1].context} ranks"
        yield f"  responses of {response // 1024}k: {held}"
    yield (
        f"  beside this, the engine has room for {plan.memory.engine.cache_tokens:,} tokens and the model "
        f"{plan.positions:,} positions"
    )


def _verdict(plan: Plan, suggestion: Suggestion, assumptions: Assumptions) -> Iterator[str]:
    if plan.problem is None:
        yield f"fits {assumptions.gpu_memory_gb:g} GiB"
        return
    yield f"does not fit {assumptions.gpu_memory_gb:g} GiB: {plan.problem}"
    if suggestion is None:
        yield "nothing that was tried fits, on up to eight times the GPUs; take GPUs with more memory"
        return
    changes, instead = suggestion
    words = [f"{key}={_value(value)}" for key, value in changes.items()]
    if instead.world_size != plan.world_size:
        words.append(f"--world-size {instead.world_size}")
    most = instead.memory.worst
    yield f"fits with: {' '.join(words)}"
    yield f"  (planned again: {most.total / GIB:.1f} GiB in {most.name}; {instead.step_seconds:,.1f} s a step)"


def _suggested(suggestion: tuple[Mapping[str, Any], Plan]) -> dict[str, Any]:
    changes, instead = suggestion
    return {
        "changes": dict(changes),
        "world_size": instead.world_size,
        "most_bytes": instead.memory.worst.total,
        "step_seconds": instead.step_seconds,
    }


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
