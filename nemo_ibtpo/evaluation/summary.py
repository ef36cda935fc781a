"""An evaluation for people: figures with intervals as a table, JSON and Markdown; and the comparison of two."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.evaluation.result import EvaluationResult
from nemo_ibtpo.evaluation.settings import describe_difference
from nemo_ibtpo.evaluation.statistics import Comparison, Interval, bootstrap_interval, compare
from nemo_ibtpo.files import write_atomically

SAMPLES = "samples.jsonl"
# What two compared evaluations may differ in: it is what the comparison is about.
_COMPARED = ("model_digest", "seed", "dtype")


@dataclass(frozen=True)
class Figure:
    """One number of an evaluation.

    Attributes:
        name: such as ``avg@4``.
        value: of the number.
        interval: its 95 % interval, or None where it describes the samples and estimates nothing.
        is_share: whether it is shown in per cent.
    """

    name: str
    value: float
    interval: Interval | None
    is_share: bool = True

    def __str__(self) -> str:
        if not self.is_share:
            return f"{self.value:,.0f}"
        if self.interval is None:
            return f"{self.value:.1%}"
        return f"{self.value:.1%} [{self.interval.low:.1%}, {self.interval.high:.1%}]"


def figures(result: EvaluationResult) -> list[Figure]:
    """All figures of an evaluation; pass@k for the powers of two up to k, and k itself."""
    k = result.samples_per_problem
    ks = sorted({2**power for power in range(1, k.bit_length()) if 2**power <= k} | ({k} if k > 1 else set()))
    lengths = [len(sample.tokens) for sample in result.samples]
    return [
        _estimate(f"avg@{k}", result.scores()),
        *(_estimate(f"pass@{n}", result.pass_scores(n)) for n in ks),
        _estimate(f"majority@{k}", result.majority_scores()),
        Figure("response tokens, mean", float(np.mean(lengths)), None, is_share=False),
        Figure("response tokens, median", float(np.median(lengths)), None, is_share=False),
        Figure("response tokens, 95th percentile", float(np.quantile(lengths, 0.95)), None, is_share=False),
        Figure("truncated at max_new_tokens", result.truncated_share, None),
        Figure("without an answer", result.unanswered_share, None),
        Figure("unparsable", result.unparsable_share, None),
        Figure("verifier ran into a limit", result.verifier_limit_share, None),
    ]


def _estimate(name: str, scores: Mapping[str, float]) -> Figure:
    values = list(scores.values())
    return Figure(name, float(np.mean(values)), bootstrap_interval(values, seed=0))


def table(results: Sequence[EvaluationResult]) -> Table:
    """One column an evaluation, one row a figure."""
    shown = Table(title="evaluation (95 % bootstrap intervals over problems)")
    shown.add_column("")
    for result in results:
        shown.add_column(f"{result.settings['benchmark']}\n{result.settings['problems']} problems", justify="right")
    columns = [{figure.name: str(figure) for figure in figures(result)} for result in results]
    for name in dict.fromkeys(name for column in columns for name in column):  # k differs between benchmarks
        shown.add_row(name, *(column.get(name, "") for column in columns))
    return shown


def write_summary(result: EvaluationResult, directory: Path) -> None:
    """Write ``summary.json`` and ``summary.md``."""
    found = figures(result)
    write_atomically(
        directory / "summary.json",
        json.dumps({"settings": result.settings, "figures": [asdict(figure) for figure in found]}, indent=2),
    )
    settings = result.settings
    lines = [
        f"# {settings['benchmark']}",
        "",
        f"{settings['problems']} problems x {settings['samples_per_problem']} samples, temperature "
        f"{settings['temperature']}, top_p {settings['top_p']}, top_k {settings['top_k']}, "
        f"at most {settings['max_new_tokens']} tokens, seed {settings['seed']}; model {settings['model_path']} "
        f"({settings['model_digest']}), {settings['engine']} in {settings['dtype']}. Brackets: 95 % bootstrap "
        "intervals over problems.",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {figure.name} | {figure} |" for figure in found),
    ]
    write_atomically(directory / "summary.md", "\n".join(lines) + "\n")


@dataclass(frozen=True)
class BenchmarkComparison:
    """Two evaluations on one benchmark.

    Attributes:
        benchmark: its name.
        first, second: avg@k of each.
        comparison: of second minus first.
    """

    benchmark: str
    first: float
    second: float
    comparison: Comparison


def read_results(path: Path) -> dict[str, EvaluationResult]:
    """The evaluations in an ``output_dir``, in one benchmark's directory in it or in its samples file, by benchmark.

    Raises:
        UserError: there is none, one is unfinished, or a file is damaged.
    """
    if path.is_file():
        files = [path]
    elif (path / SAMPLES).is_file():
        files = [path / SAMPLES]
    else:
        files = sorted(path.glob(f"*/{SAMPLES}"))
    if not files:
        raise UserError(f"{path} holds no finished evaluation: neither {SAMPLES} nor a directory with one")
    results = [EvaluationResult.from_jsonl(file) for file in files]
    if any("benchmark" not in result.settings for result in results):
        raise UserError(f"{path} holds an evaluation made during training, without the settings of a benchmark")
    return {result.settings["benchmark"]: result for result in results}


def compare_results(
    first: Mapping[str, EvaluationResult], second: Mapping[str, EvaluationResult], seed: int
) -> list[BenchmarkComparison]:
    """Compare evaluations benchmark by benchmark.

    Raises:
        UserError: they are not of the same benchmarks, problems and settings.
    """
    if alone := sorted(first.keys() ^ second.keys()):
        raise UserError(f"the evaluations cannot be compared: only one of them has {', '.join(alone)}")
    compared = []
    for benchmark, result in first.items():
        other = second[benchmark]
        if difference := describe_difference(result.settings, other.settings, but=_COMPARED):
            difference = difference.replace(", here ", " and ")
            raise UserError(f"the evaluations of {benchmark} cannot be compared, they differ in {difference}")
        comparison = compare(result.scores(), other.scores(), seed)
        compared.append(BenchmarkComparison(benchmark, result.accuracy, other.accuracy, comparison))
    return compared


def comparison_table(compared: Sequence[BenchmarkComparison]) -> Table:
    """One row a benchmark."""
    shown = Table(title="avg@k, paired over problems")
    for heading in _COMPARISON_COLUMNS:
        shown.add_column(heading, justify="left" if heading == "benchmark" else "right")
    for row in compared:
        shown.add_row(*_cells(row))
    return shown


def write_comparison(compared: Sequence[BenchmarkComparison], sides: tuple[str, str], stem: Path) -> None:
    """Write ``<stem>.json`` and ``<stem>.md``."""
    rows: list[dict[str, Any]] = [asdict(row) for row in compared]
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        stem.with_name(f"{stem.name}.json"),
        json.dumps({"first": sides[0], "second": sides[1], "rows": rows}, indent=2),
    )
    lines = [
        f"first: {sides[0]}; second: {sides[1]}; avg@k",
        "",
        f"| {' | '.join(_COMPARISON_COLUMNS)} |",
        "|---" * len(_COMPARISON_COLUMNS) + "|",
        *(f"| {' | '.join(_cells(row))} |" for row in compared),
        "",
        "Intervals: paired bootstrap over problems, 95 %. p: paired permutation test, two-sided, not corrected for "
        "the number of benchmarks.",
    ]
    write_atomically(stem.with_name(f"{stem.name}.md"), "\n".join(lines) + "\n")


_COMPARISON_COLUMNS = ("benchmark", "problems", "first", "second", "difference [95 % interval]", "p")


def _cells(row: BenchmarkComparison) -> tuple[str, ...]:
    low, high = row.comparison.interval
    return (
        row.benchmark,
        str(row.comparison.problems),
        f"{row.first:.1%}",
        f"{row.second:.1%}",
        f"{row.comparison.difference:+.1%} [{low:+.1%}, {high:+.1%}]",
        f"{row.comparison.p_value:.2g}",
    )
