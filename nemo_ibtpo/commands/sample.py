"""``nemo-ibtpo sample recipe=<name or path> [samplers=[...]] [key=value ...]``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.experiments.sampler_comparison.choices import FOLDER, StudySettings, read_settings

if TYPE_CHECKING:
    from nemo_ibtpo.commands import Subparsers

_EPILOG = """\
overrides:
  samplers=[independent,ib,random]   choices of the group sampler, or label:choice to have one twice
  num_prompts=64                     problems, the same for all samplers
  dataset=train                      or validation
  <label>.<key>=<value>              a key of one sampler alone
  key=value                          as in `nemo-ibtpo train --help`, for all samplers

examples:
  nemo-ibtpo sample recipe=tiny --dry-run
  nemo-ibtpo sample recipe=tiny num_prompts=200 output_dir=runs/study
  nemo-ibtpo sample recipe=tiny samplers=[independent,ib,full] full.segment_tokens=16
  nemo-ibtpo sample recipe=tiny samplers=[ib,curious:ib,narrow:independent] curious.initial_rollouts=2 \\
      curious.rounds=11 narrow.initial_rollouts=8

Every prompt's result is kept as soon as it is known: the same command goes on where it was interrupted. It ends with
a table like the paper's, <output_dir>/sampling_study/summary.json, summary.md and eff_rate.png.
"""


def add_parser(commands: Subparsers, argv: Sequence[str]) -> None:
    """Add the parser of ``sample``."""
    sample = commands.add_parser(
        "sample",
        allow_abbrev=False,
        help="compare samplers on a model and its problems, without training",
        usage="nemo-ibtpo sample recipe=<name or path> [samplers=[...]] [key=value ...] [--dry-run]",
        description="Sample the same prompts with several samplers and compare Eff-Rate, Avg-Rate, tokens and time.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sample.add_argument("overrides", nargs="*", metavar="key=value", help="recipe=... and the overrides below")
    sample.add_argument("--dry-run", action="store_true", help="check everything, print the plan, start nothing")


def run(arguments: argparse.Namespace) -> None:
    """Compare samplers, or say what would be compared."""
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise UserError(f"sample is one process; this is one of {ranks} under torchrun: start it without torchrun")
    settings = read_settings(arguments.overrides)
    print(_plan(settings), flush=True)
    if arguments.dry_run:
        print("dry run: nothing was started")
        return
    from nemo_ibtpo.experiments.sampler_comparison.sampling_runs import run_comparison  # imports torch
    from nemo_ibtpo.reporting.progress import RunConsole

    run_comparison(settings, RunConsole(0))


def _plan(settings: StudySettings) -> str:
    config = settings.common
    path = getattr(config.data, settings.dataset).path
    lines = [
        f"study of {config.model.path}, written to {config.output_dir}/{FOLDER}",
        f"  problems  {settings.num_prompts:,} of data.{settings.dataset}: {path}",
        f"  sampling  at most {config.rollout.max_new_tokens:,} tokens, temperature {config.rollout.temperature:g}",
    ]
    for label, own in settings.samplers.items():
        sampler = own.sampler
        kind = "" if label == sampler.name else f" ({sampler.name})"
        lines.append(f"  sampler   {label}{kind}: {sampler.trajectories_per_prompt} trajectories a prompt")
    return "\n".join(lines)
