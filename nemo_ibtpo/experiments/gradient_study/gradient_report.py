"""The errors of a gradient study as a table, ``summary.json``, ``summary.md`` and ``errors.png``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nemo_ibtpo.experiments.gradient_study.gradient_arms import GradientStudy
from nemo_ibtpo.experiments.gradient_study.gradient_errors import ArmErrors
from nemo_ibtpo.files import write_atomically
from nemo_ibtpo.reporting.tables import Table

_NOTE = (
    "All relative to the reference gradient of the batch, at the factor that brings an arm's mean gradient nearest "
    "to it, in per cent of its squared length. bias^2: what more tokens do not mend. error: bias^2 plus the "
    "variance of a batch with one tree a prompt, times the arm's tokens over those of the arm compared with. ratio: "
    "error over that arm's; below 1 is better. Brackets: 95 % jackknife intervals over prompts; `*`: it leaves out 1."
)


def as_table(rows: Sequence[ArmErrors]) -> Table:
    """What fits a console of 80 columns; the files have the rest."""
    cells = [(row.arm, f"{row.tokens:.0f}", row.error.shown(".1f", 100), _ratio(row)) for row in rows]
    return Table(("arm", "tokens", "error %", "ratio"), cells, note=_NOTE)


def _full_table(rows: Sequence[ArmErrors]) -> Table:
    columns = ("arm", "tokens", "mixed %", "scale", "bias^2 %", "bias^2 of prompts %", "error %", "ratio")
    cells = [
        (
            row.arm,
            f"{row.tokens:.0f}",
            f"{100 * row.mixed:.1f}",
            row.scale.shown(".2f"),
            row.bias_squared.shown(".1f", 100),
            row.prompt_bias_squared.shown(".1f", 100),
            row.error.shown(".1f", 100),
            _ratio(row),
        )
        for row in rows
    ]
    return Table(columns, cells, note=_NOTE)


def _ratio(row: ArmErrors) -> str:
    if row.error_ratio is None:
        return "-"
    interval = row.error_ratio.interval
    tells = interval is not None and not interval.low <= 1 <= interval.high
    return f"{row.error_ratio.shown('.2f')}{' *' * tells}"


def write_report(directory: Path, study: GradientStudy, rows: Sequence[ArmErrors]) -> list[Path]:
    """Write the files and return their paths."""
    intro = (
        f"{study.num_prompts} prompts of {study.common.model.path}, {study.repetitions} trees a prompt and sampler; "
        f"reference: {2 * study.reference.sampler.initial_rollouts:,} chains a prompt; compared with "
        f"{study.compared_with} at equal sampled tokens."
    )
    paths = [directory / name for name in ("summary.json", "summary.md", "errors.png")]
    write_atomically(paths[0], json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    write_atomically(paths[1], f"{intro}\n\n{_full_table(rows).as_markdown()}\n")
    _draw(rows).savefig(paths[2], dpi=120)
    return paths


def _draw(rows: Sequence[ArmErrors]) -> Figure:
    """Bias and error of each arm as bars, the error with its interval."""
    figure = Figure(figsize=(6.4, 0.8 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(rows))
    errors = [100 * row.error.mean for row in rows]
    reach = [100 * (row.error.interval.high - row.error.mean) if row.error.interval else 0.0 for row in rows]
    axes.barh(places, errors, xerr=reach, color="C0", alpha=0.6, label="error at equal tokens")
    axes.barh(places, [100 * row.bias_squared.mean for row in rows], color="C3", label="of this, bias^2")
    axes.set_yticks(places, [row.arm for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("per cent of the reference gradient's squared length")
    axes.legend(fontsize=8)
    return figure
