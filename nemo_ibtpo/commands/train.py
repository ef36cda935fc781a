"""``nemo-ibtpo train recipe=<name or path> [key=value ...]``, or with NeMo's flags for the recipe."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_ibtpo.checkpoints.occupancy import only_run_in
from nemo_ibtpo.checkpoints.status import EXIT_REQUEUE, failure_is_told, finished_steps
from nemo_ibtpo.commands import asks_help
from nemo_ibtpo.config import help_text
from nemo_ibtpo.config.batch_plan import batch_plan
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.hydra_flags import add_hydra_flags, arguments_with_recipe
from nemo_ibtpo.config.layout import fewest_ranks
from nemo_ibtpo.config.loader import Asked, composition, recipe_and_overrides
from nemo_ibtpo.config.mixtures import all_parts
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.config.validation import validate
from nemo_ibtpo.data.sources import check_sources
from nemo_ibtpo.nemo import toolkit
from nemo_ibtpo.nemo.experiment import Experiment
from nemo_ibtpo.reporting.progress import RunConsole

if TYPE_CHECKING:
    from nemo_ibtpo.commands import Subparsers


def add_parser(commands: Subparsers, argv: Sequence[str]) -> None:
    """Add the parser of ``train``."""
    train = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="train a model with a recipe (nemo-ibtpo train --help lists recipes and keys)",
        usage="nemo-ibtpo train recipe=<name or path> [key=value ...] [--dry-run [--world-size N]]",
        description="Train a model. Under torchrun the same command runs on every rank.",
        epilog=help_text.train_epilog() if asks_help(argv) else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("overrides", nargs="*", metavar="key=value", help="recipe=..., keys and group choices, below")
    add_hydra_flags(train)
    train.add_argument(
        "--dry-run", action="store_true", help="compose, validate, print the batch plan, and start nothing"
    )
    train.add_argument(
        "--world-size",
        type=int,
        metavar="N",
        help="ranks to plan a dry run for (default: the fewest that fit)",
    )


def run(arguments: argparse.Namespace) -> int | None:
    """Train, or plan a training run; the exit status ``EXIT_REQUEUE`` if it stopped and is to be started again."""
    overrides = arguments_with_recipe(arguments.config_path, arguments.config_name, arguments.overrides)
    request = composition(*recipe_and_overrides(overrides))
    by_nemo = arguments.config_name is not None and toolkit.is_installed()
    if by_nemo:
        toolkit.import_resolvers()
    composed = request.compose()
    if arguments.dry_run:
        return _dry_run(request.asked(composed).at_this_start(), arguments.world_size)
    if arguments.world_size is not None:
        raise UserError("--world-size plans a dry run; the size of a real run is what torchrun starts")
    if not by_nemo:
        return _start(request.asked(composed))
    # Mistakes have been reported by now; NeMo composes the same configuration once more.
    return toolkit.under_hydra_runner(
        request.path, request.hydra_overrides, lambda config: _start(request.asked(config))
    )


def _dry_run(config: RunConfig, asked: int | None) -> int:
    ranks = _planned_world_size(config, asked)
    validate(config, "train", ranks)
    check_sources(*(part.dataset for part in all_parts(config.data)))
    print(batch_plan(config, ranks))
    print(f"dry run for {ranks} rank{'s' * (ranks != 1)}: nothing was started")
    return 0


def _start(asked: Asked) -> int:
    experiment = None if asked.exp_manager is None else Experiment(asked.exp_manager)
    config = asked.config(None if experiment is None else experiment.version)
    with only_run_in(Path(config.output_dir)), failure_is_told(Path(config.output_dir)):
        return _train(config, _world_size(), experiment)


def _train(config: RunConfig, ranks: int, experiment: Experiment | None) -> int:
    validate(config, "train", ranks)
    speaks = int(os.environ.get("RANK", "0")) == 0
    finished = finished_steps(Path(config.output_dir), config.trainer)
    if finished is not None:
        if speaks:
            print(
                f"this run is complete: {finished} steps, model in {config.output_dir}/hf. "
                "Raise trainer.max_steps (or max_sampled_tokens) to train on, or choose another output_dir"
            )
        return 0
    check_sources(*(part.dataset for part in all_parts(config.data)))
    if experiment is not None:
        experiment.set_up(config.trainer.max_steps)
    RunConsole(0 if speaks else 1).say(batch_plan(config, ranks))
    from nemo_ibtpo.training.run import run_training  # imports torch and Megatron

    return EXIT_REQUEUE if run_training(config) else 0


def _planned_world_size(config: RunConfig, asked: int | None) -> int:
    if asked is not None:
        return asked
    return _world_size() if "WORLD_SIZE" in os.environ else max(1, fewest_ranks(config))


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
