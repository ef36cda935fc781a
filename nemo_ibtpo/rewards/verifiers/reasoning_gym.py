"""Verifier ``reasoning_gym``: the task's own ``score_answer``.

Tasks give partial scores, such as 0.01 for a wrong answer in the right form. Here an answer is correct if its
score reaches 1 and wrong otherwise (declared), so that the mean reward is the accuracy.

Some tasks hand the answer to ``eval`` or to SymPy's ``parse_expr``, which is ``eval`` underneath. They see an
answer only if it is inert: nothing but numbers, arithmetic, single letters and names of mathematical functions.
"""

from __future__ import annotations

import inspect
import json
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from reasoning_gym.factory import DATASETS, create_dataset

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards.verifiers import Verdict

# Faults of the scorers of release 0.1.x, found by asking all of them about junk (tests/unit/rewards/test_scorers.py).
REFUSED = {"game_of_life_halting": "accepts any text, since it compares bool(text)"}
_PREFIX_SCORERS = {"coin_flip"}  # a number that begins as the gold answer does is right for it: 0 for 0.25
_TOLERANCE = Fraction(1, 10_000)  # as coin_flip's scorer has it
_NO_NUMBER = re.compile(r"\b(?:nan|inf|infinity)\b", re.IGNORECASE)  # complex_arithmetic accepts nan

# Evaluation of anything but the entry itself.
_EVALUATES_ANSWER = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\((?!entry\b|metadata\b)")

MAX_EXPRESSION_CHARS = 1_000
# No quotes, brackets, braces, colons or equals signs: no strings, no subscripts, no lambdas.
_INERT_CHARACTERS = re.compile(r"[0-9A-Za-z_\s+\-*/^!.,()]*", re.ASCII)
_WORD = re.compile(r"\w+", re.ASCII)
_HARMLESS_WORD = re.compile(r"\d+|[A-Za-z_]|pi|abs|Abs|sqrt|exp|log|ln|a?(?:sin|cos|tan)h?|sec|csc|cot|erf", re.ASCII)
_ATTRIBUTE = re.compile(r"\.\s*[A-Za-z_]", re.ASCII)


def verify(answer: str, problem: Problem) -> Verdict:
    """Score the answer with the problem's task."""
    entry = problem.metadata["entry"]
    if answer == entry["answer"].strip():
        return "correct"
    if _evaluates_answer(problem.metadata["task"]) and not is_inert(answer):
        return "unparsable"
    if _NO_NUMBER.search(answer) and not _NO_NUMBER.search(entry["answer"]):
        return "unparsable"
    if problem.metadata["task"] in _PREFIX_SCORERS:
        return _same_fraction(answer, entry["answer"])
    dataset = _dataset(problem)
    try:
        score = dataset.score_answer(answer, entry)
    except Exception:  # not every task foresees every text
        return "unparsable"
    return "correct" if score >= 1 else "wrong"


def gold_defect(problem: Problem) -> str | None:
    """A task that does not give its own answer full marks cannot be trusted with others.

    It happens where ``score_answer`` compares tuples, which do not survive the entry's way through JSON.
    """
    entry, task = problem.metadata["entry"], problem.metadata["task"]
    if (fault := REFUSED.get(task)) is not None:
        return f"the scorer of the task {task} {fault}"
    if _dataset(problem).score_answer(entry["answer"], entry) < 1:
        return f"the task {problem.metadata['task']} does not accept its own answer"
    return None


def _same_fraction(answer: str, gold: str) -> Verdict:
    try:
        return "correct" if abs(Fraction(answer.replace(",", "")) - Fraction(gold)) <= _TOLERANCE else "wrong"
    except (ValueError, ZeroDivisionError, OverflowError):
        return "unparsable"


def is_inert(text: str) -> bool:
    """Whether evaluating ``text`` as Python or by SymPy can do nothing but arithmetic."""
    return (
        len(text) <= MAX_EXPRESSION_CHARS
        and _INERT_CHARACTERS.fullmatch(text) is not None
        and _ATTRIBUTE.search(text) is None
        and all(_HARMLESS_WORD.fullmatch(word) for word in _WORD.findall(text))
    )


def _dataset(problem: Problem) -> Any:
    return _make_dataset(problem.metadata["task"], json.dumps(problem.metadata["options"]))


@lru_cache
def _make_dataset(task: str, options_json: str) -> Any:
    # Size and seed make no difference to scoring.
    return create_dataset(task, **json.loads(options_json), size=1, seed=0)


@lru_cache
def _evaluates_answer(task: str) -> bool:
    return _EVALUATES_ANSWER.search(inspect.getsource(DATASETS[task][0].score_answer)) is not None
