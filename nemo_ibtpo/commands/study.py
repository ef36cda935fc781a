"""``nemo-ibtpo study run | report <study.yaml>`` and ``nemo-ibtpo study gradient recipe=<name or path>``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.experiments.gradient_study import gradient_arms
from nemo_ibtpo.experiments.training_study.study_file import Study, read_study

if TYPE_CHECKING:
    from nemo_ibtpo.commands import Subparsers

_EPILOG = """\
examples:
  nemo-ibtpo study run studies/tiny.yaml --dry-run
  nemo-ibtpo study run studies/tiny.yaml --jobs 2       # goes on where it was interrupted
  nemo-ibtpo study report studies/tiny.yaml             # of the runs that are complete, into the study's output_dir
  nemo-ibtpo study report studies/tiny.yaml --results docs/results/tiny.jsonl --docs docs   # redraws docs/results.md
  nemo-ibtpo study gradient recipe=tiny output_dir=runs/gradients    # without training: error of each arm's gradient
"""


def add_parser(commands: Subparsers, argv: Sequence[str]) -> None:
    """Add the parser of ``study``."""
    study = commands.add_parser(
        "study",
        allow_abbrev=False,
        help="train arms with several seeds on the same tasks and compare them",
        description="Train every arm of a study with every seed on every task, and report with intervals.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = study.add_subparsers(dest="action", metavar="run | report | gradient", required=True)
    run = actions.add_parser("run", allow_abbrev=False, help="train what is missing")
    run.add_argument("study", type=Path, metavar="STUDY", help="path of the study's YAML")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that train at once (default: 1)")
    run.add_argument("--dry-run", action="store_true", help="check everything, print the plan, start nothing")
    report = actions.add_parser("report", allow_abbrev=False, help="write tables and figures")
    report.add_argument("study", type=Path, metavar="STUDY", help="path of the study's YAML")
    report.add_argument("--results", type=Path, metavar="FILE", help="gathered results, in the place of the runs")
    report.add_argument("--docs", type=Path, metavar="DIR", help="also put everything into DIR/results.md")
    gradient = actions.add_parser(
        "gradient",
        allow_abbrev=False,
        help="compare the gradients that arms get for their tokens, without training",
        description="Grow trees with a model that stays as it is and compare each arm's gradient with that of many "
        "chains: bias, and error at equal sampled tokens. Goes on where it was interrupted; writes below "
        "<output_dir>/gradient_study.",
    )
    gradient.add_argument(
        "overrides", nargs="*", metavar="key=value", help="recipe=..., keys of the settings and the run"
    )
    gradient.add_argument("--settings", type=Path, metavar="FILE", help="in the place of conf/gradient_study.yaml")
    gradient.add_argument("--dry-run", action="store_true", help="check everything, print the plan, start nothing")


def run(arguments: argparse.Namespace) -> int | None:
    """Train, report, or compare gradients."""
    if arguments.action == "gradient":
        _gradient(arguments)
        return None
    study = read_study(arguments.study)
    if arguments.action == "report":
        from nemo_ibtpo.experiments.training_study.study_report import report

        for path in report(study, arguments.results, arguments.docs):
            print(f"wrote {path}")
        return None
    if arguments.jobs < 1:
        raise UserError(f"--jobs {arguments.jobs}: at least one process trains")
    if arguments.dry_run:
        print(_plan(study))
        print("dry run: nothing was started")
        return None
    return _train(study, arguments)


def _train(study: Study, arguments: argparse.Namespace) -> int | None:
    from nemo_ibtpo.checkpoints.status import EXIT_REQUEUE
    from nemo_ibtpo.experiments.training_study.training_runs import helpers, run_study  # imports torch and Megatron
    from nemo_ibtpo.reporting.progress import RunConsole

    console = RunConsole(0)
    with helpers(arguments.study, arguments.jobs - 1):
        stopped = run_study(study, console)
    if stopped is None:
        return None
    console.say(f"stopped: {stopped}; the same command goes on")
    return EXIT_REQUEUE


def _gradient(arguments: argparse.Namespace) -> None:
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise UserError(f"study gradient is one process; this is one of {ranks} under torchrun: start it without")
    study = gradient_arms.read_study(arguments.settings, arguments.overrides)
    lines = {
        "problems": f"{study.num_prompts:,} of data.{study.dataset}",
        "reference": f"{2 * study.reference.sampler.initial_rollouts:,} chains a prompt",
        "arms": f"{', '.join(study.arms)}; {study.repetitions} trees a prompt",
        "compared with": study.compared_with,
        "written to": f"{study.common.output_dir}/{gradient_arms.FOLDER}",
    }
    title = f"gradient study of {study.common.model.path}"
    print("\n".join([title, *(f"  {name:<16}{text}" for name, text in lines.items())]), flush=True)
    if arguments.dry_run:
        print("dry run: nothing was started")
        return
    from nemo_ibtpo.experiments.gradient_study.gradient_runs import run_gradient_study  # imports torch
    from nemo_ibtpo.reporting.progress import RunConsole

    run_gradient_study(study, RunConsole(0))


def _plan(study: Study) -> str:
    arms = {group.name: f"{', '.join(group.arms)}; seeds {list(group.seeds)}" for group in study.groups}
    lines = {
        "tasks": ", ".join(task.name for task in study.tasks),
        **arms,
        "in all": f"{len(study.runs)}, written to {study.output_dir}",
    }
    return "\n".join([f"study '{study.name}'", *(f"  {name:<16}{text}" for name, text in lines.items())])
