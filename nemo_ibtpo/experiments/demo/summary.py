"""What a run achieved, in one object: ``summary.json`` and the table at the end of a demo."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Summary:
    """A run in figures. Those of the trees are means over the steps; a step without a value takes no part.

    Attributes:
        base_accuracy, final_accuracy: avg@k on the held-out problems before the first and after the last step.
        base_interval, final_interval: their 95 % bootstrap intervals over problems.
        base_response_tokens, final_response_tokens: mean length of a response in these evaluations.
        steps: training steps.
        trajectories_per_prompt: leaves of a tree, merged ones counted as often as they were drawn.
        unique_tokens_per_prompt: sampled tokens of a tree, which are all that is trained on.
        duplicated_tokens_per_prompt: tokens of its trajectories, shared prefixes counted in each of them.
        eff_rate: share of prompts whose trajectories differ in reward.
        ib_score: mean IB-Score of the nodes with children.
        cov: mean covariance of information gain and confidence; None if no node was drawn from twice.
        seconds: wall-clock time of the run, start-up and evaluations included.
    """

    base_accuracy: float
    final_accuracy: float
    base_interval: tuple[float, float]
    final_interval: tuple[float, float]
    base_response_tokens: float
    final_response_tokens: float
    steps: int
    trajectories_per_prompt: float
    unique_tokens_per_prompt: float
    duplicated_tokens_per_prompt: float
    eff_rate: float
    ib_score: float
    cov: float | None
    seconds: float

    @property
    def rises_clearly(self) -> bool:
        """Whether the interval after training lies above the one before."""
        return self.final_interval[0] > self.base_interval[1]

    def write(self, path: Path) -> None:
        """Write all figures as one JSON object."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def summarise(rows: Sequence[Mapping[str, Any]], seconds: float) -> Summary:
    """The summary of a complete run.

    Args:
        rows: lines of its ``metrics.jsonl``: an evaluation at step 0, at least one step, the last one evaluated.
        seconds: how long it took.
    """
    first, last, steps = rows[0], rows[-1], rows[1:]

    def mean(name: str) -> float | None:
        values = [row[name] for row in steps if row[name] is not None]
        return fmean(values) if values else None

    def measured(name: str) -> float:
        value = mean(name)
        assert value is not None, f"{name} has a value in every step"
        return value

    return Summary(
        base_accuracy=first["val/accuracy"],
        final_accuracy=last["val/accuracy"],
        base_interval=(first["val/accuracy_low"], first["val/accuracy_high"]),
        final_interval=(last["val/accuracy_low"], last["val/accuracy_high"]),
        base_response_tokens=first["val/mean_response_tokens"],
        final_response_tokens=last["val/mean_response_tokens"],
        steps=last["step"],
        trajectories_per_prompt=measured("train/trajectories_per_prompt"),
        unique_tokens_per_prompt=measured("train/unique_tokens_per_prompt"),
        duplicated_tokens_per_prompt=measured("train/duplicated_tokens_per_prompt"),
        eff_rate=measured("train/eff_rate"),
        ib_score=measured("train/ib_score"),
        cov=mean("train/cov"),
        seconds=seconds,
    )


def as_table(summary: Summary, title: str) -> Table:
    """The summary for a terminal."""
    table = Table(title=title, title_justify="left", show_header=True)
    table.add_column("held-out problems")
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    table.add_row("accuracy", f"{summary.base_accuracy:.1%}", f"{summary.final_accuracy:.1%}")
    table.add_row("95 % interval", _percent(summary.base_interval), _percent(summary.final_interval))
    table.add_row(
        "tokens per response", f"{summary.base_response_tokens:.1f}", f"{summary.final_response_tokens:.1f}"
    )
    table.add_section()
    for name, value in (
        (f"training, mean of {summary.steps} steps", ""),
        ("trajectories per prompt", f"{summary.trajectories_per_prompt:.1f}"),
        ("unique tokens per prompt", f"{summary.unique_tokens_per_prompt:.1f}"),
        ("with shared prefixes repeated", f"{summary.duplicated_tokens_per_prompt:.1f}"),
        ("Eff-Rate", f"{summary.eff_rate:.1%}"),
        ("IB-Score", f"{summary.ib_score:+.3f}"),
        ("Cov", "-" if summary.cov is None else f"{summary.cov:+.4f}"),
        ("seconds", f"{summary.seconds:.0f}"),
    ):
        table.add_row(name, "", value)
    return table


def _percent(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1%} - {interval[1]:.1%}"
