"""The plan says what will happen in numbers that follow from the configuration; they are worked out by hand here."""

from dataclasses import replace
from pathlib import Path

import pytest

from nemo_ibtpo.config.batch_plan import batch_plan
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import RunConfig

RECIPE = """\
defaults: [config, {override /data: reasoning_gym}, _self_]
model: {path: some/model, dtype: fp32}
actor: {tensor_model_parallel_size: 2, pipeline_model_parallel_size: 2, max_tokens_per_microbatch: 4096}
sampler: {initial_rollouts: 4, rounds: 3, branch_points: 2, rollouts_per_branch: 3, max_sequences_per_tree: null}
rollout: {max_new_tokens: 100}
data: {max_prompt_tokens: 50, train: {path: chain_sum}}
trainer: {max_steps: 40, num_prompts_per_step: 16, num_prompts_per_update: 8}
"""


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return compose(str(tmp_path / "mine.yaml"), [])


def test_plan(config: RunConfig) -> None:
    assert batch_plan(config, 8).splitlines() == [
        "batch plan of 'mine'",
        "  model    some/model in fp32, written to runs/mine",
        "  ranks    8 ranks = 2 tensor x 2 pipeline x 2 data parallel",
        "  engines  8 vllm replicas on 1 rank each, 64 sequences at once",
        # 4 + (3 - 1) * 2 * 3 = 16 trajectories a tree, 16 * 16 = 256 a step
        "  step     16 prompts -> 16 trees (ib) of 16 trajectories (4 from the prompt + 2 rounds of 6) "
        "= 256 trajectories, method IBTPO",
        # 16 / 8 = 2 updates a step, 40 * 2 = 80 in all
        "  updates  2 optimizer steps a step, each on 8 trees over 2 data-parallel ranks; 80 in the run of 40 steps",
        # a tree shares at least its prompt: 50 + 16 * 100 = 1,650; a step 16 * 1,650 = 26,400
        "  tokens   a trajectory has at most 50 + 100 = 150, a tree 1,650, a step 26,400; a micro-batch 4,096",
        "  saved    after every 10 steps and the last step, when stopped; the newest 2 and the 1 of the highest "
        "accuracy are kept; resume: auto",
    ]


def test_plan_with_a_window(config: RunConfig) -> None:
    windowed = replace(config.sampler, rounds=9, branch_points=1, rollouts_per_branch=1, max_sequences_per_tree=4)
    assert "(4 from the prompt + 8 branches, 4 in flight) = 192" in batch_plan(replace(config, sampler=windowed), 8)


def test_plan_with_shared_sequences(config: RunConfig) -> None:
    shared = replace(config, actor=replace(config.actor, context_parallel_size=2))
    plan = batch_plan(shared, 8)
    assert "8 ranks = 2 tensor x 2 context x 2 pipeline x 1 data parallel" in plan
    assert "each on 8 trees over 1 data-parallel rank;" in plan


def test_plan_without_branches(tmp_path: Path) -> None:
    (tmp_path / "flat.yaml").write_text(RECIPE.replace("rounds: 3", "name: independent, rounds: 1"))
    plan = batch_plan(compose(str(tmp_path / "flat.yaml"), ["trainer.num_prompts_per_update=1"]), 4)
    assert "16 trees (independent) of 4 trajectories (4 from the prompt) = 64 trajectories" in plan
    assert "16 optimizer steps a step, each on 1 tree over 1 data-parallel rank; 640 in" in plan
