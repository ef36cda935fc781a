"""The results of a study as a table on the console, ``summary.json``, ``summary.md`` and ``eff_rate.png``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nemo_ibtpo.experiments.sampler_comparison.equal_tokens import Record, SamplerResult, mixed_of_subset
from nemo_ibtpo.files import write_atomically
from nemo_ibtpo.reporting.tables import Table

_COLUMNS = (
    "sampler",
    "G",
    "Eff-Rate %",
    "Avg-Rate %",
    "tokens sampled",
    "unique",
    "duplicated",
    "prefix hits %",
    "s/prompt",
    "independent at equal tokens: G",
    "Eff-Rate %",
    "difference",
)
_NOTE = (
    "Eff-Rate: prompts whose rewards differ. Avg-Rate: mean reward. Tokens are means per prompt. Brackets: 95 % "
    "bootstrap intervals over prompts. Difference (over independent): Eff-Rate over that of independent "
    "sampling at as many sampled tokens, paired."
)


def as_table(results: Sequence[SamplerResult]) -> Table:
    """What fits a console of 80 columns; the rest is in the files."""
    rows = []
    for result in results:
        cells = _cells(result)
        rows.append((*cells[:3], f"{100 * result.avg_rate.mean:.1f}", cells[4], cells[8], cells[11]))
    columns = ("sampler", "G", "Eff-Rate %", "Avg %", "tokens", "s", "over independent")
    return Table(columns, rows, note=_NOTE)


def _cells(result: SamplerResult) -> tuple[str, ...]:
    same = result.independent
    return (
        result.label,
        f"{result.trajectories:g}",
        result.eff_rate.shown(".1f", 100),
        result.avg_rate.shown(".1f", 100),
        f"{result.sampled_tokens:,.0f}",
        f"{result.unique_tokens:,.0f}",
        f"{result.duplicated_tokens:,.0f}",
        "-" if result.prefix_hit_rate is None else f"{100 * result.prefix_hit_rate:.1f}",
        f"{result.seconds:.2f}",
        "-" if same is None else f"{same.trajectories:.1f}",
        "-" if same is None else f"{100 * same.eff_rate:.1f}",
        "-" if same is None else same.eff_difference.shown("+.1f", 100),
    )


def write_report(
    directory: Path, results: Sequence[SamplerResult], independent: Sequence[Record] | None
) -> list[Path]:
    """Write the files and return their paths.

    Args:
        directory: of the study.
        results: of all samplers.
        independent: records of the independent sampler, for its curve in the plot.
    """
    table = Table(_COLUMNS, [_cells(result) for result in results], note=f"{results[0].prompts} prompts. {_NOTE}")
    paths = [directory / name for name in ("summary.json", "summary.md", "eff_rate.png")]
    write_atomically(paths[0], json.dumps([asdict(result) for result in results], indent=2) + "\n")
    write_atomically(paths[1], table.as_markdown() + "\n")
    plot(results, independent).savefig(paths[2], dpi=120)
    return paths


def plot(results: Sequence[SamplerResult], independent: Sequence[Record] | None) -> Figure:
    """Eff-Rate over sampled tokens: a point for each sampler, a curve for independent sampling of every size."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if independent:
        largest = min(len(record.rewards) for record in independent)
        sizes = np.arange(2, largest + 1)
        tokens = np.mean([record.sampled_tokens for record in independent]) * sizes / largest
        rates = [100 * np.mean([mixed_of_subset(record, int(size)) for record in independent]) for size in sizes]
        axes.plot(tokens, rates, color="0.6", zorder=1, label=f"independent, G = 2 to {largest}")
    for place, result in enumerate(results):
        mean = result.eff_rate.mean
        low, high = result.eff_rate.interval or (mean, mean)
        axes.errorbar(
            result.sampled_tokens,
            100 * mean,
            yerr=[[100 * max(mean - low, 0)], [100 * max(high - mean, 0)]],
            fmt="o",
            capsize=3,
            color=f"C{place}",
            label=result.label,
        )
    axes.set_xlabel("sampled tokens per prompt")
    axes.set_ylabel("Eff-Rate, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
