"""Hydra's own way to name a recipe, ``--config-path <directory> --config-name <name>``, which is NeMo's too."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nemo_ibtpo.config.errors import UserError


def add_hydra_flags(parser: argparse.ArgumentParser) -> None:
    """Let a parser take the flags."""
    parser.add_argument(
        "-cp", "--config-path", metavar="DIR", help="directory of the recipe that --config-name names"
    )
    parser.add_argument(
        "-cn",
        "--config-name",
        metavar="NAME",
        help="recipe=<DIR>/<NAME>.yaml as Hydra and NeMo write it; without --config-path a recipe of the package",
    )


def arguments_with_recipe(config_path: str | None, config_name: str | None, arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line with what the flags say as ``recipe=...``.

    A relative ``config_path`` starts at the current directory (Hydra's at the program, which is a package here).

    Raises:
        UserError: the flags are incomplete, or name a recipe beside another one.
    """
    if config_name is None:
        if config_path is not None:
            raise UserError(f"--config-path {config_path} needs --config-name, the name of a file in that directory")
        return list(arguments)
    if recipe := next((word for word in arguments if word.startswith("recipe=")), None):
        raise UserError(f"--config-name {config_name} and {recipe} both name the recipe; keep one of them")
    name = config_name.removesuffix(".yaml")
    if config_path is None:
        return [f"recipe={name}", *arguments]
    return [f"recipe={Path(config_path, name)}.yaml", *arguments]
