"""Verifier ``choice``: the letter of a multiple-choice question, as models spell it.

``B``, ``(B)``, ``B.``, ``\\text{B}``, ``\\textbf{(B)}`` and ``$B$`` are the letter B; a letter followed by the
option's text counts by its letter. Anything else is unparsable, several letters included.
"""

from __future__ import annotations

import re

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards.verifiers import Verdict

MAX_ANSWER_CHARS = 1_000

_FONT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|rm|bf)\b")
_LETTER = re.compile(r"\(?([A-Za-z])\)?(?:[.:)].*)?", re.ASCII | re.DOTALL)


def verify(answer: str, problem: Problem) -> Verdict:
    """Compare the letters."""
    if (letter := read_letter(answer)) is None:
        return "unparsable"
    return "correct" if letter == problem.answer else "wrong"


def gold_defect(problem: Problem) -> str | None:
    """The gold answer must be a single capital letter."""
    if re.fullmatch("[A-Z]", problem.answer) is None:
        return "the gold answer is no capital letter"
    return None


def read_letter(answer: str) -> str | None:
    """The letter that an answer chooses, as a capital, or None."""
    if len(answer) > MAX_ANSWER_CHARS:
        return None
    plain = re.sub(r"[{}$\s]+", " ", _FONT.sub(" ", answer)).strip()
    match = _LETTER.fullmatch(plain)
    return match[1].upper() if match else None
