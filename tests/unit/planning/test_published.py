"""Predicted step times against those that NeMo RL publishes, on paper.

Why it matters: a roofline is easily off by an order of magnitude. Compared are GRPO runs of 64 prompts x 32
generations on H100, with the settings of their recipes; run as a program this file prints the table of
docs/planning.md. Not exercised: this program on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.planning.assumptions import Assumptions
from nemo_ibtpo.planning.model_shape import find_config
from nemo_ibtpo.planning.planner import Lengths, Plan, make_plan

RECIPE = """\
defaults:
  - config
  - override /method: grpo
  - override /rollout: vllm
  - _self_
model: {{path: models/{model}}}
sampler: {{initial_rollouts: 32, max_trees_in_flight: 64}}
actor: {{{actor}, max_tokens_per_microbatch: 8192}}
rollout: {{max_new_tokens: 3968, max_batch_size: 256, tensor_parallel_size: {engine}}}
data: {{max_prompt_tokens: 128}}
trainer: {{num_prompts_per_step: 64, num_prompts_per_update: 16}}
"""
# Model, parallel layout, ranks of an engine, GPUs, mean total length, published seconds, factor that holds.
RUNS = {
    "llama-8b": (
        "Llama-3.1-8B-Instruct",
        "pipeline_model_parallel_size: 2, recompute: full",
        1,
        16,
        1019,
        92.8,
        1.3,
    ),
    "qwen3-32b": (
        "Qwen3-32B",
        "tensor_model_parallel_size: 4, pipeline_model_parallel_size: 4, sequence_parallel: true",
        4,
        32,
        3251,
        376.0,
        1.3,
    ),
    "llama-8b-1n": (
        "Llama-3.1-8B-Instruct",
        "pipeline_model_parallel_size: 2, recompute: full",
        1,
        8,
        795,
        112.0,
        1.3,
    ),
    "llama-70b": (
        "Llama-3.3-70B-Instruct",
        "tensor_model_parallel_size: 8, pipeline_model_parallel_size: 4, sequence_parallel: true, recompute: full",
        8,
        64,
        398,
        147.0,
        3.0,
    ),
}


def plan_of(name: str, directory: Path) -> Plan:
    model, actor, engine, gpus, length, _, _ = RUNS[name]
    recipe = directory / "published.yaml"
    recipe.write_text(RECIPE.format(model=model, actor=actor, engine=engine))
    config = compose(str(recipe), [])
    return make_plan(config, find_config(config.model.path)[0], gpus, Assumptions(), Lengths(128, length - 128))


@pytest.mark.parametrize("name", RUNS)
def test_step_time_is_within_the_stated_factor(name: str, tmp_path: Path) -> None:
    published, factor = RUNS[name][-2:]
    assert published / factor < plan_of(name, tmp_path).step_seconds < published * factor


if __name__ == "__main__":
    for run in RUNS:
        with TemporaryDirectory() as directory:
            plan = plan_of(run, Path(directory))
        phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in plan.seconds.items())
        print(f"{run}: published {RUNS[run][-2]:g} s, predicted {plan.step_seconds:.1f} s = {phases}")
