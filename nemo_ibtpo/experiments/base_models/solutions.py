"""Worked solutions of sums and differences, written by a solver who can add and subtract but is in a hurry.

A careful step takes one number to the running total. The solver has two bad habits:

- a **shortcut** takes two numbers at once and is often wrong: whether to take it is a choice of strategy;
- a **slip** reads a minus sign as a plus and goes on from there: one token, in plain view, that must be right in
  every step.

Nothing but the verifier's verdict on the final answer tells good steps from bad ones, so a model that imitates these
solutions has the skill and the bad habits, and reinforcement learning can find out which steps pay.

Every step ends with a blank line; the last line is the boxed answer.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

STEP_END = "\n\n"
_WRONG_BY = (1, 2, 10)  # what a wrong shortcut adds too much
_EXPRESSION = re.compile(r"\d+( [+-] \d+)+", re.ASCII)


@dataclass(frozen=True)
class Habits:
    """How the solver works.

    Attributes:
        shortcut_rate: probability of a shortcut where at least two numbers are left.
        shortcut_error_rate: probability that a shortcut's total is wrong; the solution goes on from the wrong total.
        sign_slip_rate: probability that a minus sign is read as a plus.
    """

    shortcut_rate: float
    shortcut_error_rate: float
    sign_slip_rate: float


def write_solution(expression: str, habits: Habits, rng: random.Random) -> str:
    """Solve a chain such as ``3 + 5 - 0 + 6`` step by step.

    Args:
        expression: at least two numbers without sign, with `` + `` or `` - `` between them.
        habits: with all rates 0 every step is careful and right.
        rng: drawn from for every step.

    Raises:
        ValueError: the expression is not such a chain.
    """
    if not _EXPRESSION.fullmatch(expression):
        raise ValueError(f"no chain of sums and differences: {expression!r}; a solution is written like '3 + 5 = 8'")
    first, *words = expression.split(" ")
    total, rest = int(first), list(zip(words[::2], map(int, words[1::2]), strict=True))
    steps = []
    while rest:
        shortcut = len(rest) > 1 and rng.random() < habits.shortcut_rate
        read, rest = [_read(*term, habits, rng) for term in rest[: 1 + shortcut]], rest[1 + shortcut :]
        result = total + sum(number if sign == "+" else -number for sign, number in read)
        if shortcut and rng.random() < habits.shortcut_error_rate:
            result += rng.choice(_WRONG_BY)
        steps.append(f"{' '.join([str(total), *(f'{sign} {number}' for sign, number in read)])} = {result}")
        total = result
    return STEP_END.join([*steps, f"\\boxed{{{total}}}"])


def _read(sign: str, number: int, habits: Habits, rng: random.Random) -> tuple[str, int]:
    slips = sign == "-" and rng.random() < habits.sign_slip_rate
    return ("+" if slips else sign), number
