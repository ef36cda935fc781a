"""The table of pairs, both ways: where answers are equal, each is right if the other is the gold answer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards.mathematics.equality import says_the_same
from nemo_ibtpo.rewards.mathematics.reading import read
from nemo_ibtpo.rewards.verifiers import math

sys.path.insert(0, str(Path(__file__).parent))
from math_pairs import CORRECT, WRONG


def verdict(gold: str, answer: str) -> str:
    return math.verify(answer, Problem("id", "question", gold, "math", {}, ()))


@pytest.mark.parametrize(("gold", "answer", "why"), CORRECT)
def test_right_answers(gold: str, answer: str, why: str) -> None:
    assert (verdict(gold, answer), verdict(answer, gold)) == ("correct", "correct"), why


@pytest.mark.parametrize(("gold", "answer", "why"), WRONG)
def test_wrong_answers(gold: str, answer: str, why: str) -> None:
    assert verdict(gold, answer) != "correct", why
    assert not answer or verdict(answer, gold) != "correct", why


def test_the_table_is_large_and_half_traps() -> None:
    pairs = {(gold, answer) for gold, answer, _ in CORRECT + WRONG}
    assert len(pairs) == len(CORRECT) + len(WRONG) >= 150
    assert len(WRONG) > 0.45 * len(pairs)


@pytest.mark.parametrize(
    ("gold", "answer", "tolerance", "same"),
    [
        ("\\pi", "3.1416", 1e-4, True),
        ("\\pi", "3.15", 1e-4, False),
        ("\\frac13", "0.333333", 1e-5, True),
        ("0", "10^{-9}", 1e-4, False),  # relative to the larger
        ("(1,2)", "(1.00001,2)", 1e-4, True),
        ("3+4i", "3.0001+4i", 1e-4, True),
        ("x", "1.00001x", 1e-4, False),  # for numbers only
    ],
)
def test_a_tolerance_is_relative_and_asked_for(gold: str, answer: str, tolerance: float, same: bool) -> None:
    assert says_the_same(read(gold), read(answer), tolerance) == same
    assert not says_the_same(read(gold), read(answer))
