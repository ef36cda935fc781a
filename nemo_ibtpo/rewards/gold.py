"""Problems whose gold answer nobody can be judged against: found before training, not met as a silent reward 0."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.data.load_report import LoadReport
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards.pool import VerifierPool


def keep_verifiable(problems: Sequence[Problem], pool: VerifierPool, report: LoadReport) -> list[Problem]:
    """The problems whose gold answers their verifier can use; ``report`` counts the others.

    Verifies every problem once, in the pool's workers: about 1 ms each for mathematical answers.

    Raises:
        UserError: none is left.
    """
    defects = {problem.problem_id: defect for problem, defect in pool.gold_defects(problems)}
    for problem in problems:
        if (defect := defects.get(problem.problem_id)) is not None:
            report.skip(defect, f"{problem.answer[:80]!r}")
    kept = [problem for problem in problems if problem.problem_id not in defects]
    report.loaded = len(kept)
    if not kept:
        raise UserError(f"{report.source}: no usable problem; {report.describe_skipped()}")
    return kept
