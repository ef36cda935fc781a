"""Curves of a run as one PNG of small multiples, drawn without a display."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.paths import did_you_mean
from nemo_ibtpo.reporting.metrics import read_metrics

_COLUMNS = 3
_PANEL_INCHES = (4.0, 2.6)


def plot_curves(metrics_jsonl: str | Path, png: str | Path, metrics: Sequence[str]) -> None:
    """Draw each metric over the steps in a panel of its own.

    A metric that is measured at some steps only is drawn through those; a value that was not finite is a gap.

    Args:
        metrics_jsonl: as ``MetricsWriter`` writes it.
        png: file to write; its directory is made if it is not there.
        metrics: names to draw, such as ``val/accuracy``; at least one.

    Raises:
        UserError: there is nothing to draw for one of the names.
    """
    rows = read_metrics(metrics_jsonl)
    known = sorted({name for row in rows for name in row} - {"step", "non_finite"})
    for name in metrics:
        if name not in known:
            raise UserError(f"{metrics_jsonl} has no '{name}'{did_you_mean(name, known)}")
    Path(png).parent.mkdir(parents=True, exist_ok=True)
    draw_curves(rows, metrics).savefig(png, dpi=120)


def draw_curves(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Figure:
    """The figure of ``plot_curves`` from rows as ``read_metrics`` returns them."""
    height = math.ceil(len(metrics) / _COLUMNS)
    width = min(len(metrics), _COLUMNS)
    figure = Figure(figsize=(_PANEL_INCHES[0] * width, _PANEL_INCHES[1] * height), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(metrics, start=1):
        points = [(row["step"], math.nan if row[name] is None else row[name]) for row in rows if name in row]
        axes = figure.add_subplot(height, width, place)
        axes.plot(*zip(*points, strict=True), marker=".", linewidth=1.2)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    return figure
