"""The command line ``nemo-ibtpo <command> ...``; the commands are in ``nemo_ibtpo/commands/``.

The same program runs as one process and on every rank under torchrun. How it ends:

- 0: done. 2: a ``UserError`` or a full disk, printed as one line. 130: interrupted. 85: ``train`` stopped on request
  and is to be started again. 1: anything else, with its traceback.
- A ``UserError`` is printed by rank 0. Ranks that meet it too stay silent: torchrun ends them as soon as rank 0 has
  left. A rank that is still alive after ``_GRACE_S`` knows something that rank 0 does not, and tells it.
- The process leaves without destructors, which take seconds, and after a failure may wait for ranks that are gone.
  After a success its threads end first, and what was registered with ``atexit`` runs.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from nemo_ibtpo import __version__
from nemo_ibtpo.commands import all_commands
from nemo_ibtpo.config.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_GRACE_S = 5.0  # torchrun looks at its processes ten times a second; other machines hear of it a little later


def entry() -> NoReturn:
    """The console script."""
    status = main(sys.argv[1:])
    if not status:  # as multiprocessing ends a process: Python would look through all of torch's objects, for seconds
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(argv: Sequence[str]) -> int:
    """Run one command; its exit status."""
    try:
        return _dispatch(argv)
    except (UserError, OSError) as error:
        if not isinstance(error, UserError) and error.errno not in _FULL:
            traceback.print_exc()
            return 1
        rank = _rank()
        if rank:
            # `train` takes SIGTERM for a request to stop; from here on it is torchrun's way to end this rank.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(_GRACE_S)
        message = " ".join(str(error).split())
        print(f"nemo-ibtpo: error: {f'rank {rank}: ' if rank else ''}{message}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("nemo-ibtpo: interrupted", file=sys.stderr, flush=True)
        return 130
    except Exception:
        traceback.print_exc()
        return 1


def _dispatch(argv: Sequence[str]) -> int:
    parser = _Parser(
        prog="nemo-ibtpo",
        allow_abbrev=False,
        description="Information Bottleneck driven Tree-based Policy Optimization with a Megatron-Core actor.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parsers = parser.add_subparsers(dest="command", metavar="command")
    commands = all_commands()
    for command in commands.values():
        command.add_parser(parsers, argv)
    arguments, rest = parser.parse_known_args(argv)
    if unknown := [word for word in rest if word.startswith("-")]:
        parser.error(f"unknown option {unknown[0]}")
    if arguments.command is None:
        parser.print_help()
        return 0
    if hasattr(arguments, "overrides"):
        arguments.overrides = [*arguments.overrides, *rest]  # argparse leaves overrides after an option in the rest
    elif rest:
        parser.error(f"{arguments.command} does not take '{rest[0]}'")
    return commands[arguments.command].run(arguments) or 0


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


class _Parser(argparse.ArgumentParser):
    """Prints a mistake in the same form as all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


if __name__ == "__main__":
    entry()
