"""The scorers of all reasoning-gym tasks, asked about junk.

Why it matters: a task whose scorer accepts junk teaches a model to write it. Each task makes one problem; a release
with a new fault fails here by name.
"""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from reasoning_gym.factory import DATASETS, create_dataset

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards.verifiers import reasoning_gym

JUNK = [
    "0",
    "1",
    "-1",
    "nan",
    "inf",
    "x",
    "junk",
    "True",
    "[]",
    "{}",
    "()",
    "None",
    "yes",
    "the answer",
    "1e999",
    "a b",
]
# Junk that the library's own scorers take for right or fall over, in release 0.1.x.
ACCEPTING = {"coin_flip", "complex_arithmetic", "game_of_life_halting"}
CRASHING = {"boxnet", "coin_flip", "game_of_life", "prime_factorization"}
NEEDS_OPTIONS = {"composite"}


@pytest.fixture(scope="module")
def probed() -> dict[str, tuple[Problem, dict[str, float | None]]]:
    """Each task's problem, and the library's score of each piece of junk, None where it raises."""
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for task in sorted(set(DATASETS) - NEEDS_OPTIONS):
            dataset = create_dataset(task, size=1, seed=7)
            entry = json.loads(json.dumps(dataset[0], default=str))
            scores: dict[str, float | None] = {}
            for junk in JUNK:
                try:
                    scores[junk] = float(dataset.score_answer(junk, entry))
                except Exception:
                    scores[junk] = None
            metadata = {"task": task, "options": {}, "entry": entry}
            problem = Problem("id", entry["question"], str(entry["answer"]), "reasoning_gym", metadata, ())
            found[task] = (problem, scores)
    return found


def test_the_faults_of_the_library_are_those_that_are_known(
    probed: dict[str, tuple[Problem, dict[str, float | None]]],
) -> None:
    accepting = {
        task
        for task, (problem, scores) in probed.items()
        if any(score is not None and score >= 1 and not _is_gold(junk, problem) for junk, score in scores.items())
    }
    crashing = {task for task, (_, scores) in probed.items() if None in scores.values()}
    assert (accepting, crashing) == (ACCEPTING, CRASHING)


def test_no_junk_is_accepted_here(probed: dict[str, tuple[Problem, dict[str, float | None]]]) -> None:
    for task, (problem, _) in probed.items():
        if task in reasoning_gym.REFUSED:
            assert f"the scorer of the task {task}" in (reasoning_gym.gold_defect(problem) or "")
            continue
        if problem.metadata["entry"]["answer"] is None:
            continue  # boxnet has no gold answers: loading leaves its rows out
        accepted = [j for j in JUNK if not _is_gold(j, problem) and reasoning_gym.verify(j, problem) == "correct"]
        assert not accepted, f"{task} accepts {accepted} for {problem.answer!r}"


def test_a_coin_flip_needs_the_number() -> None:
    entry = {"question": "q", "answer": "0.25", "metadata": {}}
    problem = Problem("id", "q", "0.25", "reasoning_gym", {"task": "coin_flip", "options": {}, "entry": entry}, ())
    answers = ("1/4", "0.25004", "0", "0.2", "0.251", "nan", "?")
    verdicts = [reasoning_gym.verify(answer, problem) for answer in answers]
    assert verdicts == ["correct", "correct", "wrong", "wrong", "wrong", "unparsable", "unparsable"]


def _is_gold(junk: str, problem: Problem) -> bool:
    """Whether junk happens to be the answer, in this or another spelling."""
    try:
        return float(junk) == float(problem.answer)
    except ValueError:
        return junk == problem.answer.strip()
