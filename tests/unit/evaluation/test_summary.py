"""What is printed and written follows from the samples, and only what is comparable is compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.evaluation.result import EvaluationResult, Sample
from nemo_ibtpo.evaluation.summary import (
    compare_results,
    comparison_table,
    figures,
    read_results,
    table,
    write_comparison,
    write_summary,
)

SETTINGS: dict[str, Any] = {
    "benchmark": "sums",
    "problems": 40,
    "problems_digest": "p",
    "samples_per_problem": 4,
    "temperature": 0.7,
    "top_p": 1.0,
    "top_k": 0,
    "max_new_tokens": 10,
    "seed": 1,
    "engine": "transformers",
    "dtype": "fp32",
    "model_digest": "a",
    "model_path": "models/a",
}


def evaluation(rate: float, **changes: Any) -> EvaluationResult:
    """40 problems of 4 samples; the same problems are hard in all of them."""
    ability = np.random.default_rng(0).random((40, 4))
    samples = []
    for (problem, number), value in np.ndenumerate(ability):
        right = bool(value < rate)
        tokens = (1,) * (number + 1)
        verdict = "correct" if right else "wrong"
        samples.append(Sample(f"p{problem}", number, tokens, "text", "yes" if right else "no", verdict, right, "eos"))  # type: ignore[arg-type]
    return EvaluationResult(tuple(samples), 4, SETTINGS | changes)


def printed(shown: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def test_figures_have_their_names_values_and_intervals() -> None:
    result = evaluation(0.4)
    found = {figure.name: figure for figure in figures(result)}
    assert list(found)[:4] == ["avg@4", "pass@2", "pass@4", "majority@4"]
    assert found["avg@4"].value == pytest.approx(result.accuracy)
    assert found["pass@2"].value == pytest.approx(result.pass_at(2))
    for name in ("avg@4", "pass@2", "pass@4", "majority@4"):
        interval = found[name].interval
        assert interval is not None and interval.low < found[name].value < interval.high
    assert found["response tokens, mean"].value == 2.5 and found["response tokens, median"].value == 2.5
    assert str(found["avg@4"]) in printed(table([result, evaluation(0.5, benchmark="others")]))


def test_summaries_hold_the_settings_and_every_figure(tmp_path: Path) -> None:
    result = evaluation(0.4)
    write_summary(result, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["settings"] == SETTINGS
    assert [figure["name"] for figure in summary["figures"]] == [figure.name for figure in figures(result)]
    markdown = (tmp_path / "summary.md").read_text()
    assert "models/a (a)" in markdown and all(
        f"| {figure.name} | {figure} |" in markdown for figure in figures(result)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["summary.json", "summary.md"]


def save(result: EvaluationResult, directory: Path) -> Path:
    path = directory / str(result.settings["benchmark"])
    path.mkdir(parents=True)
    result.to_jsonl(path / "samples.jsonl")
    return directory


def test_two_evaluations_are_compared_over_problems(tmp_path: Path) -> None:
    first = save(evaluation(0.4), tmp_path / "a")
    second = save(evaluation(0.6, model_digest="b", seed=2, model_path="models/b", dtype="bf16"), tmp_path / "b")
    (row,) = compare_results(read_results(first), read_results(second), seed=0)
    assert row.comparison.difference == pytest.approx(row.second - row.first)
    assert row.comparison.is_significant and row.comparison.p_value < 0.01 and row.comparison.problems == 40
    assert "sums" in printed(comparison_table([row]))
    write_comparison([row], ("a", "b"), tmp_path / "deep" / "both")
    written = json.loads((tmp_path / "deep" / "both.json").read_text())
    assert written["rows"][0]["comparison"]["p_value"] == row.comparison.p_value
    assert "| sums | 40 |" in (tmp_path / "deep" / "both.md").read_text()
    assert read_results(first / "sums") == read_results(first / "sums" / "samples.jsonl") == read_results(first)


@pytest.mark.parametrize(
    "changes",
    [{"problems_digest": "q"}, {"temperature": 1.0}, {"max_new_tokens": 11}, {"prompt_format": "{question}"}],
)
def test_what_differs_in_more_than_the_model_is_not_compared(changes: dict[str, Any]) -> None:
    first, second = evaluation(0.4), evaluation(0.6, **changes)
    with pytest.raises(UserError, match=f"cannot be compared, they differ in {next(iter(changes))}"):
        compare_results({"sums": first}, {"sums": second}, seed=0)
    with pytest.raises(UserError, match="only one of them has others"):
        compare_results({"sums": first}, {"sums": first, "others": second}, seed=0)


def test_what_is_no_evaluation_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished evaluation"):
        read_results(tmp_path)
    training = replace(evaluation(0.4), settings={"temperature": 1.0})
    training.to_jsonl(tmp_path / "step_3.jsonl")
    with pytest.raises(UserError, match="made during training"):
        read_results(tmp_path / "step_3.jsonl")
