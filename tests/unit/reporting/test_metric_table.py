"""The table of metrics is the one that is printed, and knows a family by its numbers.

Why this matters: people compare runs by these names. That a run logs nothing else is asserted where runs are made
(``tests/e2e/test_train.py``).
"""

from __future__ import annotations

from pathlib import Path

from nemo_ibtpo.reporting.metric_table import SECTIONS, as_markdown, find_metric, undocumented


def test_the_document_is_up_to_date() -> None:
    document = Path(__file__).parents[3] / "docs" / "metrics.md"
    assert document.read_text() == as_markdown(), "make docs"


def test_names_are_found() -> None:
    names = [metric.name for section in SECTIONS for metric in section.metrics]
    assert len(set(names)) == len(names)
    found = find_metric("val/pass_at_16")
    assert found is not None and found.name == "val/pass_at_<k>"
    assert undocumented(["step", "non_finite", "time/rollout_s", "val/pass_at_x", "train/avg"]) == [
        "val/pass_at_x",
        "train/avg",
    ]
