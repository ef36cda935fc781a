"""What runs in a verifier process. Imports neither torch nor anything that does, and the libraries that verify
only where they run: the process that owns the pool imports this module, too.

Each call is under a timer of the kernel whose signal ends the process, wherever it is stuck: in Python, in the
multiplication of two huge integers or in a regular expression. The other end sees the pipe close.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards import verifiers
from nemo_ibtpo.rewards.answers import has_lookalike_number
from nemo_ibtpo.rewards.verifiers import WHOLE_RESPONSE, Verdict, Verifier

# What a process needs; the fork server imports it once for all of them. A verifier of an extra comes when it is used.
MODULES = [__name__, *(f"{verifiers.__name__}.{name}" for name in ("choice", "exact", "math", "reasoning_gym"))]

# What a verification may allocate on top of the imports. The largest honest ones take a few megabytes.
MEMORY_LIMIT_BYTES = 1 << 30

READY = "ready"
OUT_OF_MEMORY = 3  # exit status


def verify(answer: str, problem: Problem) -> Verdict:
    """The verdict of the problem's verifier."""
    if problem.verifier not in WHOLE_RESPONSE and has_lookalike_number(answer, problem.answer):
        return "unparsable"
    return _verifier(problem.verifier).verify(answer, problem)


def gold_defect(problem: Problem) -> str | None:
    """What is wrong with the problem's gold answer, or None."""
    return _verifier(problem.verifier).gold_defect(problem)


@cache
def _verifier(name: str) -> Verifier:
    return cast(Verifier, import_module(f"{verifiers.__name__}.{name}"))


def serve(connection: Connection, timeout_s: float) -> None:
    """Say ``READY``, then answer calls ``(function, args)`` with ``(result, None)`` or ``(None, traceback)``.

    Ends when the other end of the pipe is closed, by SIGALRM when a call exceeds ``timeout_s``, and with status
    ``OUT_OF_MEMORY`` when one runs out of memory. Importing a verifier takes seconds and is no part of a call.
    """
    for module in MODULES:
        import_module(module)
    _limit_process()
    connection.send(READY)
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        for argument in args:
            if isinstance(argument, Problem):
                _verifier(argument.verifier)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        reply = _call(function, args)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(reply)


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, str | None]:
    try:
        return function(*args), None
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except Exception:  # an error of this program, not of the answer: it is raised at the other end
        return None, traceback.format_exc()


def _limit_process() -> None:
    """Limit memory, forbid writing files and core dumps, and keep the libraries quiet."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each of its threads takes address space
    pages_mapped = int(Path("/proc/self/statm").read_text().split()[0])
    address_space = pages_mapped * resource.getpagesize() + MEMORY_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
