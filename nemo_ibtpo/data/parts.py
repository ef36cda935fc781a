"""The problems of all data sets of a run; no question is in two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nemo_ibtpo.config.mixtures import Part
from nemo_ibtpo.data.load_report import LoadReport
from nemo_ibtpo.data.loading import leave_out, load_problems
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.data.prompts import PromptSettings

Keep = Callable[[list[Problem], LoadReport], list[Problem]]


def load_parts(
    parts: Sequence[Part], prompts: PromptSettings, tokenizer: Any, keep: Keep
) -> Iterator[tuple[Part, list[Problem], LoadReport]]:
    """Each data set with its problems and an account of what was left out.

    Args:
        parts: those whose questions are left out of the others come first: validation before training.
        prompts, tokenizer: see :func:`load_problems`.
        keep: leaves out further problems, and counts them.

    Raises:
        UserError: nothing usable was found in one.
    """
    taken: dict[str, str] = {}
    for part in parts:
        problems, report = load_problems(part.dataset, prompts, tokenizer)
        problems = keep(leave_out(problems, taken, report), report)
        taken |= {problem.problem_id: part.name or part.key.removeprefix("data.") for problem in problems}
        yield part, problems, report
