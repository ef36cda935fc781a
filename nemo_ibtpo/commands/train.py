"""``nemo-ibtpo train recipe=<name or path> [key=value ...]``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_ibtpo.commands import asks_help
from nemo_ibtpo.config import help_text
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.plan import batch_plan
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.config.validation import model_parallel_ranks, validate

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
    train.add_argument("words", nargs="*", metavar="key=value", help="recipe=..., keys and group choices, below")
    train.add_argument(
        "--dry-run", action="store_true", help="compose, validate, print the batch plan, and start nothing"
    )
    train.add_argument(
        "--world-size",
        type=int,
        metavar="N",
        help="ranks to plan a dry run for (default: the fewest that fit)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Train, or plan a training run."""
    words, dry_run, asked = arguments.words, arguments.dry_run, arguments.world_size
    recipes = [word.removeprefix("recipe=") for word in words if word.startswith("recipe=")]
    if len(recipes) != 1:
        raise UserError(
            f"train takes one recipe=<name or path>, not {len(recipes)}; `nemo-ibtpo train --help` lists them"
        )
    config = compose(recipes[0], [word for word in words if not word.startswith("recipe=")])
    ranks = _planned_world_size(config, asked) if dry_run else _world_size()
    if asked is not None and not dry_run:
        raise UserError("--world-size plans a dry run; the size of a real run is what torchrun starts")
    validate(config, ranks)
    if int(os.environ.get("RANK", "0")) == 0:
        print(batch_plan(config, ranks), flush=True)
    if dry_run:
        print(f"dry run for {ranks} rank{'s' * (ranks != 1)}: nothing was started")
        return
    from nemo_ibtpo.algorithms.run import run_training  # imports torch and Megatron

    run_training(config)


def _planned_world_size(config: RunConfig, asked: int | None) -> int:
    if asked is not None:
        return asked
    return _world_size() if "WORLD_SIZE" in os.environ else max(1, model_parallel_ranks(config))


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
