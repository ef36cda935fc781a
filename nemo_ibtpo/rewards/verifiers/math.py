"""Verifier ``math``: an answer and a gold answer say the same (``rewards.mathematics``)."""

from __future__ import annotations

import re

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards.mathematics.equality import says_the_same
from nemo_ibtpo.rewards.mathematics.reading import Listing, Word, read
from nemo_ibtpo.rewards.verifiers import Verdict

# Answers to mathematical problems are short; parsing takes longer than linear time.
MAX_EXPRESSION_CHARS = 1_000

_NO_WORD = re.compile(r"[?\u00a7\u00b6@#~]|^[^\w\\(\[]*$|^[^\\]*\|")


def verify(answer: str, problem: Problem, tolerance: float = 0.0) -> Verdict:
    """Compare with the gold answer; ``tolerance`` is the relative error that two real numbers may differ by."""
    if answer.strip() == problem.answer.strip():
        return "correct"
    if len(answer) > MAX_EXPRESSION_CHARS:
        return "unparsable"
    found, gold = read(answer), read(problem.answer)
    if found is None:
        return "unparsable"
    return "correct" if says_the_same(gold, found, tolerance) else "wrong"


def gold_defect(problem: Problem) -> str | None:
    """A gold answer that is neither mathematics nor words would accept its own spelling only."""
    gold = read(problem.answer)
    words = [item for item in (gold.items if isinstance(gold, Listing) else [gold]) if isinstance(item, Word)]
    if gold is None or any(_NO_WORD.search(word.text) for word in words):
        return "the gold answer is no mathematical expression"
    return None
