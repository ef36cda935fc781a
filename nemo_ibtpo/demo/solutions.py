"""Worked solutions of sums, written by a solver who knows how to add but is in a hurry.

A careful step adds one number to the running sum; a shortcut adds two at once and is often wrong. Nothing but the
verifier's verdict on the final answer tells the two apart, so a model that imitates these solutions has the skill
and the bad habit, and reinforcement learning can find out which steps pay.

Every step ends with a blank line; the last line is the boxed answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

STEP_END = "\n\n"
_SLIPS = (1, 2, 10)  # what a wrong step adds too much


@dataclass(frozen=True)
class Habits:
    """How the solver works.

    Attributes:
        shortcut_rate: probability of a shortcut where at least two numbers are left.
        shortcut_error_rate: probability that a shortcut's sum is wrong; the solution goes on from the wrong sum.
    """

    shortcut_rate: float
    shortcut_error_rate: float


def write_solution(expression: str, habits: Habits, rng: random.Random) -> str:
    """Solve a sum such as ``3 + 5 + 0 + 6`` step by step.

    Args:
        expression: at least two numbers without sign, with `` + `` between them.
        habits: with both rates 0 every step is careful and right.
        rng: drawn from for every step.

    Raises:
        ValueError: the expression is not such a sum.
    """
    terms = expression.split(" + ")
    if len(terms) < 2 or not all(term.isdecimal() for term in terms):
        raise ValueError(f"not a sum of numbers: {expression!r}; a solution is written like '3 + 5 = 8'")
    total, rest = int(terms[0]), terms[1:]
    steps = []
    while rest:
        shortcut = len(rest) > 1 and rng.random() < habits.shortcut_rate
        added, rest = rest[: 1 + shortcut], rest[1 + shortcut :]
        result = total + sum(map(int, added))
        if shortcut and rng.random() < habits.shortcut_error_rate:
            result += rng.choice(_SLIPS)
        steps.append(f"{' + '.join([str(total), *added])} = {result}")
        total = result
    return STEP_END.join([*steps, f"\\boxed{{{total}}}"])
