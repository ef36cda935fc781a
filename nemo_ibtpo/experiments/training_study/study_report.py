"""Tables and figures of a study, as files beside its runs and as marked sections of ``results.md``.

In ``results.md`` the generator owns what stands between ``<!-- study <name>: begin -->`` and ``<!-- study <name>: end
-->`` and leaves the rest, which people write, as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.evaluation.statistics import Estimate
from nemo_ibtpo.experiments.training_study.arm_estimates import ArmEstimate, equal_tokens, estimate_arm
from nemo_ibtpo.experiments.training_study.run_results import (
    RunResult,
    gather,
    is_complete,
    read_results,
    write_results,
)
from nemo_ibtpo.experiments.training_study.simulated_time import seconds_per_token
from nemo_ibtpo.experiments.training_study.study_figures import ACCURACY, BALANCE, draw
from nemo_ibtpo.experiments.training_study.study_file import Group, Study

PAGE = "results.md"
_DPI = 80


def report(study: Study, results: Path | None, docs: Path | None) -> list[Path]:
    """Write the report and return the paths of its files.

    Args:
        study: which one.
        results: gathered results in the place of the study's runs.
        docs: directory with ``results.md``, to put results, figures and tables into as well.

    Raises:
        UserError: there is nothing to report, or ``results.md`` has no place for it.
    """
    runs = read_results(results) if results else _gathered(study)
    if not runs:
        raise UserError(f"study {study.name}: no run is complete; `nemo-ibtpo study run` makes them")
    directory = study.output_dir / "report"
    written = _write(study, runs, directory / "results.jsonl", directory / "report.md", directory, "")
    if docs is None:
        return written
    page = docs / PAGE
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    section = docs / "results" / f"{study.name}.md"
    written += _write(study, runs, docs / "results" / f"{study.name}.jsonl", section, docs / "images", "images/")
    page.write_text(replace_section(text, study.name, section.read_text(encoding="utf-8"), page), encoding="utf-8")
    section.unlink()
    return [*(path for path in written if path != section), page]


def replace_section(text: str, name: str, content: str, page: Path) -> str:
    """The text with the marked section of a study replaced.

    Raises:
        UserError: the marks are not there, each once and in order.
    """
    begin, end = f"<!-- study {name}: begin -->", f"<!-- study {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"{page} needs one line '{begin}' and below it one line '{end}', where the report goes")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.partition(end)[2]}"


def as_markdown(study: Study, runs: Sequence[RunResult], images: Sequence[str]) -> str:
    """All tables and figures.

    Args:
        study: which one.
        runs: complete ones.
        images: paths of the figures, from where the text will be.
    """
    tasks = [task.name for task in study.tasks]
    done = Counter(run.task for run in runs)
    costs = seconds_per_token(study, study.simulated_on) if study.simulated_on else None
    parts = [
        f"{len(runs)} of {len(study.runs)} runs are complete ({', '.join(f'{done[t]} on {t}' for t in tasks)}), "
        f"compared at {equal_tokens(runs):,} sampled tokens. "
        "Brackets: 95 % intervals over seeds and held-out problems. `*`: the interval of a difference leaves out "
        "zero; nothing is corrected for the number of comparisons.",
        *_explained(study, costs),
    ]
    for group in study.groups:
        together = [("all tasks", tasks)] if len(tasks) > 1 else []
        for title, chosen in [*((task, [task]) for task in tasks), *together]:
            rows = _rows(group, runs, chosen, costs)
            if rows:
                parts.append(f"**{group.name.capitalize()}, {title}**\n\n{_accuracy(group, rows)}")
        if rows := _rows(group, runs, tasks, costs):
            title = f"{group.name.capitalize()}, what they sampled and how the policies look to probe trees"
            parts.append(f"**{title}**\n\n{_balance(group, rows)}")
            parts.append(f"**{group.name.capitalize()}, shape of the training trees**\n\n{_shapes(rows)}")
    parts += [f"![{Path(image).stem.replace('_', ' ')}]({image})" for image in images]
    return "\n\n".join(parts) + "\n"


def _write(
    study: Study, runs: Sequence[RunResult], results: Path, text: Path, figures: Path, link: str
) -> list[Path]:
    figures.mkdir(parents=True, exist_ok=True)
    write_results(runs, results)
    names = []
    for group in study.groups:
        arms = list(dict.fromkeys([group.compared_with, *group.arms]))
        present = [arm for arm in arms if any(run.arm == arm for run in runs)]
        tasks = [task.name for task in study.tasks if any(run.task == task.name for run in runs)]
        for kind, panels in (("accuracy", ACCURACY), ("balance", BALANCE)):
            name = f"study_{study.name}_{group.name.replace(' ', '_')}_{kind}.png"
            draw(runs, tasks, present, panels).savefig(figures / name, dpi=_DPI)
            names.append(name)
    text.write_text(as_markdown(study, runs, [f"{link}{name}" for name in names]), encoding="utf-8")
    return [results, text, *(figures / name for name in names)]


def _gathered(study: Study) -> list[RunResult]:
    final = study.final is not None
    return [gather(run, final) for run in study.runs if is_complete(run, final)]


def _explained(study: Study, costs: Mapping[str, float] | None) -> Iterator[str]:
    """What the columns of this study stand for."""
    if study.final:
        number, samples = study.final.num_prompts, study.final.samples_per_prompt
        yield f"After: {number} held-out problems with {samples} samples each, evaluated when training had ended."
    if study.simulated_on and costs:
        on = study.simulated_on
        least = min(costs.values())
        shown = ", ".join(f"{arm} {cost / least:.2f}" for arm, cost in costs.items())
        yield (
            f"Equal simulated time: a step as `nemo-ibtpo plan recipe={on.recipe} --prompt-tokens {on.prompt_tokens} "
            f"--response-tokens {on.response_tokens}` predicts it with the overrides of an arm. Seconds of a sampled "
            f"token, those of the cheapest arm being 1: {shown}."
        )


def _rows(
    group: Group, runs: Sequence[RunResult], tasks: Sequence[str], costs: Mapping[str, float] | None
) -> list[ArmEstimate]:
    arms = list(dict.fromkeys([group.compared_with, *group.arms]))
    rows = [estimate_arm(arm, group.compared_with, runs, tasks, costs) for arm in arms]
    return [row for row in rows if row is not None]


def _table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [columns, ("---",) * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _accuracy(group: Group, rows: Sequence[ArmEstimate]) -> str:
    timed = rows[0].timed is not None
    columns = (
        "arm",
        "seeds",
        "accuracy before %",
        "after %",
        f"after, minus {group.compared_with}",
        "mean over the budget %",
        f"mean, minus {group.compared_with}",
        *(["at equal simulated time %", f"at equal time, minus {group.compared_with}"] if timed else []),
        "steps",
        "seconds",
    )
    cells = [
        (
            row.arm,
            str(min(row.seeds.values())),
            f"{100 * row.base.mean:.1f}",
            row.final.shown(".1f", 100),
            _difference(row.difference),
            row.along.shown(".1f", 100),
            _difference(row.difference_along),
            *([row.timed.shown(".1f", 100), _difference(row.difference_timed)] if row.timed else []),
            f"{row.steps:.1f}",
            f"{row.seconds:.0f}",
        )
        for row in rows
    ]
    return _table(columns, cells)


def _balance(group: Group, rows: Sequence[ArmEstimate]) -> str:
    columns = (
        "arm",
        "training trees: Eff-Rate %",
        "Avg-Rate %",
        "tokens a prompt, sampled",
        "unique",
        "probe trees at the end: Eff-Rate %",
        "entropy",
        "IB-Score",
        "Cov",
        f"Cov, minus {group.compared_with}",
    )
    before = rows[0].probe_before
    cells = [
        (
            row.arm,
            row.training["eff_rate"].shown(".1f", 100),
            row.training["avg_rate"].shown(".1f", 100),
            f"{row.training['sampled_tokens_per_prompt'].mean:.0f}",
            f"{row.training['unique_tokens_per_prompt'].mean:.0f}",
            *_probe_cells(row.probe_after),
            "-" if row.cov_difference is None else _marked(row.cov_difference, "+.3f"),
        )
        for row in rows
    ]
    return _table(columns, [("(base model)", "-", "-", "-", "-", *_probe_cells(before), "-"), *cells])


def _shapes(rows: Sequence[ArmEstimate]) -> str:
    columns = (
        "arm",
        "trajectories",
        "distinct",
        "from the prompt",
        "continuations of other steps",
        "of how many steps",
        "of these with several children %",
        "with children of different value %",
    )
    cells = []
    for row in rows:
        shape = row.trees
        counts = ("trajectories", "distinct", "from_prompt", "continuations", "continued_steps")
        shares = ["-" if math.isnan(shape[n]) else f"{100 * shape[n]:.0f}" for n in ("forked", "informative")]
        cells.append((row.arm, *(f"{shape[name]:.1f}" for name in counts), *shares))
    return _table(columns, cells)


def _probe_cells(probe: Mapping[str, Estimate]) -> tuple[str, ...]:
    return (
        probe["eff_rate"].shown(".0f", 100),
        probe["entropy"].shown(".3f"),
        probe["ib_score"].shown(".2f"),
        probe["cov"].shown("+.3f"),
    )


def _difference(value: Estimate | None) -> str:
    return "-" if value is None else _marked(value, "+.1f", 100)


def _marked(value: Estimate, form: str, times: float = 1) -> str:
    return f"{value.shown(form, times)}{' *' * value.is_significant}"
