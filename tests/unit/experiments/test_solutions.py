"""The solutions decide what the base model can and cannot do, and so what the demo can show.

They are read back with arithmetic of the test's own. Not exercised: what a model learns from them.
"""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_ibtpo.experiments.base_models.solutions import STEP_END, Habits, write_solution

CAREFUL = Habits(shortcut_rate=0.0, shortcut_error_rate=0.0, sign_slip_rate=0.0)
TERMS = st.lists(st.integers(0, 99), min_size=2, max_size=8)


def steps_of(solution: str) -> list[tuple[list[int], int]]:
    """(summands, result) of each step; the box must repeat the last result."""
    *steps, box = solution.split(STEP_END)
    read = []
    for step in steps:
        left, right = step.split(" = ")
        read.append(([int(term) for term in left.split(" + ")], int(right)))
    assert box == f"\\boxed{{{read[-1][1]}}}"
    return read


def test_a_careful_solution_word_for_word() -> None:
    solution = write_solution("3 + 10 + 0", CAREFUL, random.Random(0))
    assert solution == "3 + 10 = 13\n\n13 + 0 = 13\n\n\\boxed{13}"


@given(TERMS, st.integers(0, 10))
def test_careful_steps_add_one_number_each_and_are_right(terms: list[int], seed: int) -> None:
    steps = steps_of(write_solution(" + ".join(map(str, terms)), CAREFUL, random.Random(seed)))
    assert [summands[1] for summands, _ in steps] == terms[1:]
    assert all(len(summands) == 2 and sum(summands) == result for summands, result in steps)
    assert steps[-1][1] == sum(terms)


@given(TERMS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 10))
def test_every_term_is_added_once_and_only_shortcuts_are_wrong(
    terms: list[int], shortcut_rate: float, error_rate: float, seed: int
) -> None:
    habits = Habits(shortcut_rate, error_rate, 0.0)
    steps = steps_of(write_solution(" + ".join(map(str, terms)), habits, random.Random(seed)))
    assert [terms[0], *(term for summands, _ in steps for term in summands[1:])] == [*steps[0][0][:1], *terms[1:]]
    total = terms[0]
    for summands, result in steps:
        assert summands[0] == total, "a step goes on from the result before it, right or wrong"
        assert len(summands) in (2, 3)
        assert result >= sum(summands)
        if len(summands) == 2:
            assert result == sum(summands)
        total = result


@given(TERMS)
def test_rates_of_one_take_and_spoil_every_shortcut(terms: list[int]) -> None:
    steps = steps_of(write_solution(" + ".join(map(str, terms)), Habits(1.0, 1.0, 1.0), random.Random(0)))
    assert [len(summands) for summands, _ in steps[:-1]] == [3] * (len(steps) - 1)
    assert all(result > sum(summands) for summands, result in steps if len(summands) == 3)


def test_the_rates_are_what_they_say() -> None:
    rng, habits = random.Random(1), Habits(shortcut_rate=0.4, shortcut_error_rate=0.5, sign_slip_rate=0.0)
    # With three terms the first step is the only one that may be a shortcut.
    first = [steps_of(write_solution("1 + 2 + 3", habits, rng))[0] for _ in range(4000)]
    shortcuts = [result for summands, result in first if len(summands) == 3]
    # Four standard errors: 4 * sqrt(0.4 * 0.6 / 4000) = 0.031 and 4 * sqrt(0.25 / 1600) = 0.05.
    assert len(shortcuts) / 4000 == pytest.approx(0.4, abs=0.031)
    assert sum(result != 6 for result in shortcuts) / len(shortcuts) == pytest.approx(0.5, abs=0.05)


def test_a_slip_reads_minus_as_plus_and_goes_on_from_there() -> None:
    slips = Habits(shortcut_rate=0.0, shortcut_error_rate=0.0, sign_slip_rate=1.0)
    assert write_solution("3 - 10 + 2", CAREFUL, random.Random(0)) == "3 - 10 = -7\n\n-7 + 2 = -5\n\n\\boxed{-5}"
    assert write_solution("3 - 10 + 2", slips, random.Random(0)) == "3 + 10 = 13\n\n13 + 2 = 15\n\n\\boxed{15}"


@pytest.mark.parametrize("expression", ["", "7", "-3 + 4", "3 + -4", "3+4", "3 * 4 + 1", "x + 1"])
def test_what_is_no_chain_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(expression))):
        write_solution(expression, CAREFUL, random.Random(0))
