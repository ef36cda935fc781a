"""Verifier ``math``: math-verify decides whether answer and gold answer are mathematically equal.

math-verify parses LaTeX with a grammar, so that no text of a model is evaluated as Python. Its own time-outs,
which rest on signals, are off: the worker's limit holds. The comparison is not symmetric; the gold answer comes
first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import math_verify

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards.verifiers import Verdict

# Answers to mathematical problems are short; parsing takes longer than linear time.
MAX_EXPRESSION_CHARS = 1_000

_LATEX_ONLY = (math_verify.LatexExtractionConfig(boxed_match_priority=0),)


def verify(answer: str, problem: Problem) -> Verdict:
    """Compare with the gold answer, a percent sign on either side left out (declared: 50 % and 50 are equal)."""
    answer, gold = _without_percent(answer), _without_percent(problem.answer)
    if answer == gold:
        return "correct"
    if len(answer) > MAX_EXPRESSION_CHARS:
        return "unparsable"
    parsed = _parse(answer)
    if not parsed:
        return "unparsable"
    equal = math_verify.verify(list(_parse(gold)), list(parsed), timeout_seconds=None)
    return "correct" if equal else "wrong"


def gold_defect(problem: Problem) -> str | None:
    """A gold answer that is no mathematical expression would accept its own spelling only."""
    if all(isinstance(parsed, str) for parsed in _parse(_without_percent(problem.answer))):
        return "the gold answer is no mathematical expression"
    return None


@lru_cache(maxsize=4096)  # the gold answer comes back with every response to its problem
def _parse(expression: str) -> tuple[Any, ...]:
    """What math-verify makes of a LaTeX expression: SymPy objects and, last, its normalised text."""
    return tuple(math_verify.parse(f"\\boxed{{{expression}}}", _LATEX_ONLY, parsing_timeout=None))


def _without_percent(text: str) -> str:
    return text.replace("\\%", "").replace("%", "").strip()
