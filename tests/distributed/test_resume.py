"""Stopping in the middle changes nothing: 2 + 2 steps are 4 steps, bit for bit.

Why it matters: whoever compares two curves must not have to ask how often the jobs behind them were restarted.
Compared are prompts, trees, weights, optimizer, random generators, metrics, evaluations and the exported model, at
TP2 x PP2 with an engine on each rank; and that the run goes on under another layout.

Not exercised: GPUs, vLLM (whose low bits depend on what it batches together), torchrun and stopping by force
(tests/crash).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comparing_runs import assert_same_run, logged
from distributed.launch import start_ranks
from tiny_job import write_tiny_job

HERE = Path(__file__).resolve().parent
LAYOUT = [
    "actor.tensor_model_parallel_size=2",
    "actor.pipeline_model_parallel_size=2",
    "actor.sequence_parallel=true",
    "rollout.num_replicas=null",
    "trainer.refill=3",
]


def train(num_ranks: int, recipe: Path, output: Path, *words: str) -> str:
    """Run ranks; what they printed. The trees they grew are appended to ``<output>.trees``."""
    worker = [str(HERE / "resume_worker.py"), str(output.with_suffix(".trees")), str(recipe), f"output_dir={output}"]
    log = output.with_suffix(".log")
    log.unlink(missing_ok=True)
    return start_ranks(num_ranks, [*worker, *words], log)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    root = tmp_path_factory.mktemp("resume")
    recipe = write_tiny_job(root / "job")
    train(4, recipe, root / "whole", *LAYOUT)
    train(4, recipe, root / "halves", *LAYOUT, "trainer.max_steps=2")
    return root / "whole", root / "halves", train(4, recipe, root / "halves", *LAYOUT)


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
    said = train(2, whole.parent / "job" / "job.yaml", whole, "trainer.max_steps=5", *LAYOUT[-2:])
    assert "resuming after step 4 of 5" in said
    assert "saved on 4 ranks, loaded on 2" in said
    assert [row["step"] for row in logged(whole)] == [0, 1, 2, 3, 4, 5]
