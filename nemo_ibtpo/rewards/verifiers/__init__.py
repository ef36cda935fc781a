"""The verifiers, by the name that ``DatasetConfig.verifier`` gives them.

A verifier is a module with two functions (``Verifier``). It runs in a worker process with limits on time and
memory, because what it reads was written by a model.
"""

from __future__ import annotations

from typing import Literal, Protocol

from nemo_ibtpo.data.problems import Problem

Verdict = Literal["correct", "wrong", "unparsable"]

# Verifiers that judge a response as a whole; the others judge its boxed answer.
WHOLE_RESPONSE = frozenset({"ifeval"})


class Verifier(Protocol):
    """Judges answers to problems."""

    def verify(self, answer: str, problem: Problem) -> Verdict:
        """The verdict on a boxed answer (or a whole response); depends on nothing but the arguments."""

    def gold_defect(self, problem: Problem) -> str | None:
        """Why no answer could be judged fairly against the problem's gold answer, or None."""
