"""The commands of ``nemo-ibtpo``, one module each: a new command is a new file here.

A module has two functions (``Command``). The command line imports every module to list the commands, so that a module
imports torch, Megatron and what needs them only where ``run`` calls them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    # The action that ``ArgumentParser.add_subparsers`` returns.
    Subparsers = argparse._SubParsersAction[Any]


class Command(Protocol):
    """One command."""

    def add_parser(self, commands: Subparsers, argv: Sequence[str]) -> None:
        """Add the command's parser, named as its module; ``argv`` tells whether a long help text is asked for.

        An argument ``overrides`` (nargs="*") takes ``key=value``, wherever it stands among the options.
        """

    def run(self, arguments: argparse.Namespace) -> int | None:
        """Run the command; an exit status other than 0 if it has one of its own.

        Raises:
            UserError: something the user can mend.
        """


def all_commands() -> dict[str, Command]:
    """Every command by its name, in alphabetical order."""
    names = sorted(module.name for module in iter_modules(__path__))
    return {name: cast(Command, import_module(f"{__name__}.{name}")) for name in names}


def asks_help(argv: Sequence[str]) -> bool:
    """Whether a help text will be printed."""
    return bool({"-h", "--help"} & set(argv))
