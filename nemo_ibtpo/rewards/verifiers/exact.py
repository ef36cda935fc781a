"""Verifier ``exact``: the answer is the gold answer, but for case, white space and composed accents.

Characters that only look alike stay different: compatibility forms (NFKC) would make full-width and mathematical
letters equal to plain ones.
"""

from __future__ import annotations

import unicodedata

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards.verifiers import Verdict


def verify(answer: str, problem: Problem) -> Verdict:
    """Compare the normalised texts."""
    return "correct" if _normalise(answer) == _normalise(problem.answer) else "wrong"


def gold_defect(problem: Problem) -> str | None:
    """Every gold answer will do: loading has refused empty ones."""
    return None


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
