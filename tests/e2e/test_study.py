"""``make study-short``: two arms, two seeds, from base model to report, as a user starts it.

Everything is real and small: reasoning-gym, supervised training, Megatron, the embedded engine. Also that a study
goes on where it was interrupted, and that a run which ended with its tokens is left alone. Not exercised: that
anything is learned; docs/results.md is about that.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from distributed.launch import command_line, try_ranks

from nemo_ibtpo.evaluation.result import EvaluationResult
from nemo_ibtpo.reporting.metrics import read_metrics

STUDY = Path(__file__).resolve().parents[2] / "studies" / "short.yaml"
BUDGET = 1500


def study(directory: Path, *words: str) -> str:
    failed, said = try_ranks(1, command_line("study", *words), directory / "log", directory=directory)
    assert not failed, said[-6000:]
    return said


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    study(root, "run", str(STUDY))
    return root


def runs(root: Path) -> list[Path]:
    return sorted((root / "runs" / "studies" / "short" / "sums").glob("*/seed_*"))


def test_runs_end_with_their_budget_and_are_measured_alike(root: Path) -> None:
    assert [f"{run.parent.name}/{run.name}" for run in runs(root)] == [
        f"{arm}/seed_{seed}" for arm in ("grpo", "ibtpo") for seed in (1, 2)
    ]
    for run in runs(root):
        rows = read_metrics(run / "metrics.jsonl")
        tokens = [row["train/sampled_tokens"] for row in rows[1:]]
        assert tokens[-1] >= BUDGET > (tokens[-2] if len(tokens) > 1 else 0)
        assert tokens == sorted(tokens)
        assert json.loads((run / "status.json").read_text())["sampled_tokens"] == tokens[-1]
        for row in (rows[0], rows[-1]):  # of the base model and of the trained one
            assert {"val/accuracy", "probe/cov", "probe/ib_score", "probe/entropy"} <= row.keys()
        assert len(EvaluationResult.from_jsonl(run / "validation" / "step_0.jsonl").by_problem()) == 4
        final = EvaluationResult.from_jsonl(run / "final.jsonl")
        assert (len(final.by_problem()), final.samples_per_problem) == (8, 3)
    first = [read_metrics(run / "metrics.jsonl")[0] for run in runs(root)]
    for name in ("probe/ib_score", "probe/entropy"):  # the same model, problems and seeds, whatever the arm
        assert first[0][name] == pytest.approx(first[2][name], rel=1e-4)


def test_only_what_is_missing_is_made_and_the_report_is_of_all(root: Path) -> None:
    whole, cut = runs(root)[0], runs(root)[1]
    logged = (whole / "metrics.jsonl").stat().st_mtime_ns
    status = json.loads((cut / "status.json").read_text())
    before = read_metrics(cut / "metrics.jsonl")
    (cut / "status.json").write_text(json.dumps(status | {"state": "running"}))  # as a kill leaves it
    evaluated = (whole / "final.jsonl").read_bytes()
    (whole / "final.jsonl").unlink()  # killed in the evaluation after training
    said = study(root, "run", str(STUDY))
    assert "grpo/seed_2" in said and "grpo/seed_1" in said and "ibtpo" not in said
    assert (whole / "metrics.jsonl").stat().st_mtime_ns == logged, "a run that has trained is evaluated only"
    assert (whole / "final.jsonl").read_bytes() == evaluated
    again = read_metrics(cut / "metrics.jsonl")
    assert [row["train/sampled_tokens"] for row in again[1:]] == [row["train/sampled_tokens"] for row in before[1:]]
    study(root, "report", str(STUDY))
    report = root / "runs" / "studies" / "short" / "report"
    text = (report / "report.md").read_text()
    assert "4 of 4 runs are complete" in text and "| at equal time, minus grpo |" in text
    costs = re.search(r"being 1: grpo (\d\.\d\d), ibtpo (\d\.\d\d)\.", text)
    assert costs and min(costs.groups()) == "1.00"
    assert len((report / "results.jsonl").read_text().splitlines()) == 4


def test_too_few_problems_are_refused_before_training(root: Path) -> None:
    """Of 40 sums of two digits some are the same, which only reading them tells."""
    text = STUDY.read_text().replace("tasks/sums.yaml", str(STUDY.parent / "tasks" / "sums.yaml"))
    text = text.replace("studies/short", "studies/few").replace("  num_prompts: 8\n", "  num_prompts: 40\n")
    overrides = ["data.validation.size=40", "data.train.options.min_terms=2", "data.train.options.max_terms=2"]
    text = text.replace("data.validation.size=8", "\n  - ".join(overrides))
    (root / "few.yaml").write_text(text)
    command = command_line("study", "run", str(root / "few.yaml"))
    failed, said = try_ranks(1, command, root / "log", directory=root)
    assert failed and "num_prompts=40, but data.validation has 3" in said, said[-3000:]
    assert not list((root / "runs" / "studies" / "few").glob("**/metrics.jsonl"))
