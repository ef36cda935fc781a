"""What runs in a verifier process. Imports neither torch nor anything that does, and the libraries that verify
only where they run: the process that owns the pool imports this module, too.

Each call is under a timer of the kernel whose signal ends the process, wherever it is stuck: in Python, in the
multiplication of two huge integers or in a regular expression. The other end sees the pipe close.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, cast

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards import functions, verifiers
from nemo_ibtpo.rewards.answers import has_lookalike_number
from nemo_ibtpo.rewards.limits import Limits, limit_process
from nemo_ibtpo.rewards.verifiers import WHOLE_RESPONSE, Verdict, Verifier

Outcome = Verdict | Literal["scored", "error", "timeout", "crash"]

READY = "ready"
OUT_OF_MEMORY = 3  # exit status


@dataclass(frozen=True)
class Judgement:
    """What became of a response.

    Attributes:
        outcome: the verifier's verdict, or ``scored`` by functions, or ``error``.
        reward: in [0, 1].
        parts: scores of the parts and what functions measured beside them, by name.
        error: what went wrong with a function.
    """

    outcome: Outcome
    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


def verify(answer: str, problem: Problem, tolerance: float = 0.0) -> Verdict:
    """The verdict of the problem's verifier; ``tolerance`` is the ``math`` verifier's."""
    if problem.verifier not in WHOLE_RESPONSE and has_lookalike_number(answer, problem.answer):
        return "unparsable"
    accepted = problem.metadata.get("accepted", [])
    verdicts = [_verdict(answer, replace(problem, answer=gold), tolerance) for gold in (problem.answer, *accepted)]
    return "correct" if "correct" in verdicts else verdicts[0]


def _verdict(answer: str, problem: Problem, tolerance: float) -> Verdict:
    verifier = _verifier(problem.verifier)
    if problem.verifier == "math":
        return verifier.verify(answer, problem, tolerance)  # type: ignore[call-arg]
    return verifier.verify(answer, problem)


def judge(
    responses: Sequence[tuple[Problem, str, str | None, int]], parts: Sequence[functions.Part], tolerance: float
) -> list[Judgement]:
    """Judge responses by the weighted parts of a reward.

    Args:
        responses: each with its problem, its text, its answer and its number of tokens.
        parts: at least one.
        tolerance: of the ``math`` verifier.
    """
    requests = [
        functions.Request(problem.question, text, problem.answer, problem.metadata.get("row", {}), tokens)
        for problem, text, _, tokens in responses
    ]
    columns: list[list[functions.Scored | str]] = []
    for part in parts:
        if part.function == functions.VERIFIER:
            verdicts = ("" if a is None else verify(a, problem, tolerance) for problem, _, a, _ in responses)
            columns.append([functions.Scored(float(verdict == "correct"), {}) for verdict in verdicts])
        else:
            columns.append(functions.call(part, requests))
    return [_joined(parts, scores) for scores in zip(*columns, strict=True)]


def _joined(parts: Sequence[functions.Part], scores: Sequence[functions.Scored | str]) -> Judgement:
    reward = 0.0
    measured: dict[str, float] = {}
    for part, scored in zip(parts, scores, strict=True):
        if isinstance(scored, str):
            return Judgement("error", 0.0, error=f"{part.function}: {scored}")
        reward += part.weight * scored.score
        measured |= {part.name: scored.score} if part.name else {}
        measured |= scored.details
    return Judgement("scored", reward / sum(part.weight for part in parts), measured)


def function_defects(parts: Sequence[functions.Part]) -> list[str]:
    """Why functions cannot be called."""
    return [defect for part in parts if (defect := functions.defect(part)) is not None]


def gold_defect(problem: Problem) -> str | None:
    """What is wrong with the problem's gold answer, or None."""
    return _verifier(problem.verifier).gold_defect(problem)


def modules(names: Iterable[str]) -> list[str]:
    """What a process imports that runs these verifiers; the fork server does it once for all of them."""
    return [__name__, *(f"{verifiers.__name__}.{name}" for name in sorted(names))]


@cache
def _verifier(name: str) -> Verifier:
    return cast(Verifier, import_module(f"{verifiers.__name__}.{name}"))


def serve(
    connection: Connection, timeout_s: float, limits: Limits, preload: Sequence[str], verifier_names: Sequence[str]
) -> None:
    """Say ``READY``, then answer calls ``(function, args)`` with ``(result, None)`` or ``(None, traceback)``.

    Ends when the other end of the pipe is closed, by SIGALRM when a call exceeds ``timeout_s``, and with status
    ``OUT_OF_MEMORY`` when one runs out of memory. Importing a verifier, of ``verifier_names`` or because a problem
    asks for it, or a function of ``preload`` takes seconds and is no part of a call.
    """
    for module in modules(verifier_names):
        import_module(module)
    for name in preload:
        with contextlib.suppress(ValueError):  # function_defects reports it
            functions.find(name)
    limit_process(limits)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
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
