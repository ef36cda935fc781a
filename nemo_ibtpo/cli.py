"""The command line: ``nemo-ibtpo train recipe=<name or path> [key=value ...]``.

The same program runs as one process and on every rank under torchrun. How it ends:

- 0: done. 2: a ``UserError``, told in one line. 130: interrupted. 1: anything else, with its traceback.
- A ``UserError`` is told by rank 0. Ranks that meet it too stay silent: torchrun ends them as soon as rank 0 has
  left. A rank that is still alive after ``_GRACE_S`` knows something that rank 0 does not, and tells it.
- After a failure the process leaves without destructors, which may wait for ranks that are gone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from nemo_ibtpo import __version__
from nemo_ibtpo.config import help_text
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.plan import batch_plan
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.config.validation import model_parallel_ranks, validate

_GRACE_S = 5.0  # torchrun looks at its processes ten times a second; other machines hear of it a little later


def entry() -> NoReturn:
    """The console script."""
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)
    sys.exit(0)


def main(argv: Sequence[str]) -> int:
    """Run one command; its exit status."""
    try:
        _dispatch(argv)
    except UserError as error:
        rank = _rank()
        if rank:
            time.sleep(_GRACE_S)
        message = " ".join(str(error).split())
        print(f"nemo-ibtpo: error: {f'rank {rank}: ' if rank else ''}{message}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _dispatch(argv: Sequence[str]) -> None:
    parser = _Parser(
        prog="nemo-ibtpo",
        allow_abbrev=False,
        description="Information Bottleneck driven Tree-based Policy Optimization with a Megatron-Core actor.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="command")
    train = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="train a model with a recipe (nemo-ibtpo train --help lists recipes and keys)",
        usage="nemo-ibtpo train recipe=<name or path> [key=value ...] [--dry-run [--world-size N]]",
        description="Train a model. Under torchrun the same command runs on every rank.",
        epilog=help_text.train_epilog() if {"-h", "--help"} & set(argv) else None,
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
    arguments, rest = parser.parse_known_args(argv)
    if unknown := [word for word in rest if word.startswith("-")]:
        parser.error(f"unknown option {unknown[0]}")
    if arguments.command is None:
        parser.print_help()
        return
    # argparse takes words before an option and leaves those after it in the rest.
    _train([*arguments.words, *rest], dry_run=arguments.dry_run, world_size=arguments.world_size)


def _train(words: Sequence[str], *, dry_run: bool, world_size: int | None) -> None:
    recipes = [word.removeprefix("recipe=") for word in words if word.startswith("recipe=")]
    if len(recipes) != 1:
        raise UserError(
            f"train takes one recipe=<name or path>, not {len(recipes)}; `nemo-ibtpo train --help` lists them"
        )
    config = compose(recipes[0], [word for word in words if not word.startswith("recipe=")])
    ranks = _planned_world_size(config, world_size) if dry_run else _world_size()
    if world_size is not None and not dry_run:
        raise UserError("--world-size plans a dry run; the size of a real run is what torchrun starts")
    validate(config, ranks)
    if _rank() == 0:
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


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


class _Parser(argparse.ArgumentParser):
    """Tells a mistake the way every other one is told."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


if __name__ == "__main__":
    entry()
