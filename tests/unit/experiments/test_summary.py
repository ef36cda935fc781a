"""The summary is what people quote; every figure is recomputed here from lines as a run writes them.

Not exercised: the run itself (tests/e2e/test_demo.py).
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nemo_ibtpo.experiments.demo.summary import Summary, as_table, summarise


def row(step: int, **metrics: float | None) -> dict[str, Any]:
    return {"step": step, **{name.replace("__", "/"): value for name, value in metrics.items()}}


def training(cov: float | None, **changes: float) -> dict[str, Any]:
    return {
        "train__trajectories_per_prompt": 12.0,
        "train__unique_tokens_per_prompt": 200.0,
        "train__duplicated_tokens_per_prompt": 400.0,
        "train__eff_rate": 1.0,
        "train__ib_score": -1.1,
        "train__cov": cov,
    } | changes


def evaluation(accuracy: float, tokens: float) -> dict[str, Any]:
    return {
        "val__accuracy": accuracy,
        "val__accuracy_low": accuracy - 0.1,
        "val__accuracy_high": accuracy + 0.1,
        "val__mean_response_tokens": tokens,
    }


@pytest.fixture
def summary() -> Summary:
    rows = [
        row(0, **evaluation(0.3, 36.0)),
        row(1, **training(0.02)),
        row(2, **training(None, train__eff_rate=0.5, train__unique_tokens_per_prompt=100.0)),
        row(3, **training(0.06, train__ib_score=-1.4), **evaluation(0.7, 42.0)),
    ]
    return summarise(rows, seconds=12.5)


def test_the_figures(summary: Summary) -> None:
    assert (summary.base_accuracy, summary.final_accuracy, summary.steps) == (0.3, 0.7, 3)
    assert summary.base_interval == pytest.approx((0.2, 0.4))
    assert summary.final_interval == pytest.approx((0.6, 0.8))
    assert (summary.base_response_tokens, summary.final_response_tokens) == (36.0, 42.0)
    assert summary.trajectories_per_prompt == 12
    assert summary.unique_tokens_per_prompt == pytest.approx((200 + 100 + 200) / 3)
    assert summary.duplicated_tokens_per_prompt == 400
    assert summary.eff_rate == pytest.approx((1 + 0.5 + 1) / 3)
    assert summary.ib_score == pytest.approx((-1.1 - 1.1 - 1.4) / 3)
    assert summary.cov == pytest.approx((0.02 + 0.06) / 2), "the step without a value takes no part"
    assert summary.seconds == 12.5


def test_the_file_holds_what_is_promised(summary: Summary, tmp_path: Path) -> None:
    summary.write(tmp_path / "summary.json")
    written = json.loads((tmp_path / "summary.json").read_text())
    promised = ("base_accuracy", "final_accuracy", "steps", "trajectories_per_prompt", "unique_tokens_per_prompt")
    promised += ("duplicated_tokens_per_prompt", "eff_rate", "ib_score", "cov", "seconds")
    for name in promised:
        assert written[name] == getattr(summary, name)


def test_a_rise_is_clear_only_beyond_both_intervals(summary: Summary) -> None:
    assert summary.rises_clearly
    rows = [row(0, **evaluation(0.5, 36.0)), row(1, **training(None), **evaluation(0.65, 36.0))]
    assert not summarise(rows, seconds=1.0).rises_clearly


def test_the_table_shows_them(summary: Summary) -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(as_table(summary, "recipe tiny"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for cell in ("recipe tiny", "30.0%", "70.0%", "20.0% - 40.0%", "mean of 3 steps", "166.7", "83.3%", "+0.0400"):
        assert cell in text
    rows = [row(0, **evaluation(0.5, 36.0)), row(1, **training(None), **evaluation(0.65, 36.0))]
    console.print(as_table(summarise(rows, seconds=1.0), "no covariance"))
