"""Stopping in the middle changes nothing: 2 + 2 steps are 4 steps, bit for bit.

Why it matters: whoever compares two curves must not have to ask how often the jobs behind them were restarted.
Compared are prompts, trees, weights, optimizer, random generators, metrics, evaluations and the exported model, at
TP2 x PP2 with an engine on each rank; that the run goes on under another layout; and the same on two ranks with trees
that are carried over a step, where one rank is asked to stop in the middle of sampling.

Not exercised: GPUs, vLLM (whose low bits depend on what it batches together), torchrun and stopping by force
(tests/crash).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from comparing_runs import assert_same_run, logged
from distributed.launch import start_ranks
from tiny_job import BITWISE, write_tiny_job

from nemo_ibtpo.tree.trees_in_flight import read_trees

HERE = Path(__file__).resolve().parent
RUN = ["rollout.num_replicas=null", "trainer.refill=3", BITWISE]
LAYOUT = [
    "actor.tensor_model_parallel_size=2",
    "actor.pipeline_model_parallel_size=2",
    "actor.sequence_parallel=true",
]


def train(num_ranks: int, recipe: Path, output: Path, *words: str, script: str = "resume_worker.py") -> str:
    """Run ranks; what they printed. The trees they grew are appended to ``<output>.trees``."""
    worker = [str(HERE / script), str(output.with_suffix(".trees")), str(recipe), f"output_dir={output}"]
    log = output.with_suffix(".log")
    log.unlink(missing_ok=True)
    return start_ranks(num_ranks, [*worker, *words], log)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    root = tmp_path_factory.mktemp("resume")
    recipe = write_tiny_job(root / "job")
    train(4, recipe, root / "whole", *RUN, *LAYOUT)
    train(4, recipe, root / "halves", *RUN, *LAYOUT, "trainer.max_steps=2")
    return root / "whole", root / "halves", train(4, recipe, root / "halves", *RUN, *LAYOUT)


def test_halves_are_the_whole(runs: tuple[Path, Path, str]) -> None:
    whole, halves, said = runs
    assert "resuming after step 2 of 4 from" in said
    assert_same_run(halves, whole, 4)
    rows = logged(whole)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["train/grad_norm"] > 0 for row in rows[1:])  # otherwise equality would mean nothing


def test_prompts_and_trees_are_the_same(runs: tuple[Path, Path, str]) -> None:
    whole, halves, _ = runs
    trees = [
        [json.loads(line) for line in run.with_suffix(".trees").read_text().splitlines()] for run in (halves, whole)
    ]
    assert trees[0] == trees[1]
    # Prompts of equal rewards were replaced by others, which the cursor into the prompts counts.
    drawn = [[prompt for prompt, _ in step[1]] for step in trees[0]]
    assert [len(set(step)) for step in drawn] == [len(step) for step in drawn]
    assert sum(map(len, drawn)) > 4 * 5
    assert sum(row.get("train/refilled_prompts", 0) for row in logged(whole)) == sum(map(len, drawn)) - 4 * 5


def test_another_layout_goes_on(runs: tuple[Path, Path, str]) -> None:
    whole, _, _ = runs
    said = train(2, whole.parent / "job" / "job.yaml", whole, "trainer.max_steps=5", *RUN)
    assert "resuming after step 4 of 5" in said
    assert "saved on 4 ranks, loaded on 2" in said
    assert [row["step"] for row in logged(whole)] == [0, 1, 2, 3, 4, 5]


CARRY = [
    "rollout.num_replicas=null",
    "sampler.max_sequences_per_tree=2",
    "sampler.carry_over=0.6",  # 5 trees a step, 8 in flight, and 4 that may be started: there are 12 problems
    "sampler.max_policy_lag=2",
    "trainer.max_steps=3",
    "probe.num_prompts=0",
]


@pytest.fixture(scope="module")
def carrying(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("carry_over")
    recipe = write_tiny_job(root / "job")
    train(2, recipe, root / "whole", *CARRY, "0", script="carry_over_worker.py")
    said = train(2, recipe, root / "parts", *CARRY, "3", script="carry_over_worker.py")
    assert "stopped: SIGUSR1; the same command goes on" in said
    said = train(2, recipe, root / "parts", *CARRY, "0", script="carry_over_worker.py")
    assert "resuming after step 2 of 3 from" in said
    return root / "whole", root / "parts"


def test_trees_that_are_carried_over(carrying: tuple[Path, Path]) -> None:
    whole, parts = carrying
    assert_same_run(parts, whole, 3)
    assert parts.with_suffix(".trees").read_text() == whole.with_suffix(".trees").read_text()
    rows = logged(whole)[1:]
    assert any(row["carry_over/lag_1_share"] > 0 for row in rows)
    assert all(row["carry_over/trees"] > 0 and row["train/grad_norm"] > 0 for row in rows)
    # Only tokens of lag 0 are judged: engine and actor agree on these, whatever older policies thought of theirs.
    assert all(row["mismatch/token_mult_prob_error"] < 1.001 for row in rows)
    assert any(row["mismatch/importance_ratio_max"] > 1.01 for row in rows)


def test_no_prompt_is_lost_or_trained_twice(carrying: tuple[Path, Path]) -> None:
    whole, _ = carrying
    steps = [json.loads(line)[1] for line in whole.with_suffix(".trees").read_text().splitlines()]
    left = read_trees(whole / "checkpoints" / "step_3" / "trees_in_flight.safetensors")
    drawn = Counter([prompt for step in steps for prompt, _ in step] + [tree.prompt_id for tree in left])
    assert (len(steps), len(left)) == (3, 7)
    assert sorted(drawn.values()) == [1] * 2 + [2] * 10  # 12 for the first step and 5 for each later one: 22 of 12
