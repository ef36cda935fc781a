"""The figures of a study, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nemo_ibtpo.experiments.training_study.arm_estimates import curve
from nemo_ibtpo.experiments.training_study.run_results import RunResult

_PANEL_INCHES = (4.4, 3.0)
_COLORS = (
    "#000000",
    "#d62728",
    "#ff7f0e",
    "#bcbd22",
    "#2ca02c",
    "#1f77b4",
    "#9467bd",
    "#8c564b",
    "#7f7f7f",
    "#e377c2",
)

Panel = tuple[str, str, str]  # value, over, title

ACCURACY: tuple[Panel, ...] = (
    ("accuracy", "tokens", "held-out accuracy over sampled tokens"),
    ("accuracy", "seconds", "held-out accuracy over seconds of training"),
)
BALANCE: tuple[Panel, ...] = (
    ("cov", "tokens", "Cov(eta1, eta2) of probe trees"),
    ("ib_score", "tokens", "IB-Score of probe trees"),
    ("entropy", "tokens", "entropy at probe trees, nats a token"),
    ("eff_rate", "tokens", "Eff-Rate of probe trees"),
)


def draw(runs: Sequence[RunResult], tasks: Sequence[str], arms: Sequence[str], panels: Sequence[Panel]) -> Figure:
    """A row of panels for each task, a line for each arm: the mean over seeds, between the lowest and the highest.

    Args:
        runs: of the study; arms without a run on a task are left out there.
        tasks, arms: what to draw, in this order.
        panels: what each panel shows.
    """
    by_line: dict[tuple[str, str], list[RunResult]] = {}
    for run in runs:
        by_line.setdefault((run.task, run.arm), []).append(run)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(panels), height * len(tasks) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(tasks), len(panels), squeeze=False)
    handles: dict[str, Artist] = {}
    for row, task in zip(grid, tasks, strict=True):
        for axes, (value, over, title) in zip(row, panels, strict=True):
            lines = {}
            for place, arm in enumerate(arms):
                if not (own := by_line.get((task, arm))):
                    continue
                points, color = curve(own, value, over), _COLORS[place % len(_COLORS)]
                lines[arm] = axes.plot(points.x, points.mean, color=color, linewidth=1.3)[0]
                axes.fill_between(points.x, points.low, points.high, color=color, alpha=0.07, linewidth=0)
            axes.set_title(f"{task}: {title}", fontsize=9)
            axes.set_xlabel(over, fontsize=8)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3)
            handles |= lines
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3 * len(panels), fontsize=8)
    return figure
