"""Verdicts: right answers in other words are right, wrong ones are wrong, and no text is run as a program.

A verifier that is too strict starves training of rewards, one that is too lenient teaches to cheat. These run
in the process of the test, on harmless answers; ``test_pool.py`` runs hostile ones in workers.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reasoning_gym.factory import DATASETS, create_dataset

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards.verifiers import choice, exact, math, reasoning_gym


def problem(answer: str, verifier: str = "math", metadata: dict[str, Any] | None = None) -> Problem:
    return Problem("id", "question", answer, verifier, metadata or {}, ())


def task_problem(task: str, seed: int = 0, **options: Any) -> Problem:
    """A problem of a reasoning-gym task, its entry as it comes out of the JSON it travels in."""
    entry = json.loads(json.dumps(create_dataset(task, **options, size=1, seed=seed)[0], default=str))
    metadata = {"task": task, "options": options, "entry": entry}
    return problem(entry["answer"], "reasoning_gym", metadata)


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("Paris", "paris", "correct"),
        ("  New\n York ", "new york", "correct"),
        ("caf\u0065\u0301", "caf\u00e9", "correct"),  # a composed accent
        ("\uff30aris", "Paris", "wrong"),  # full-width letters
        ("\uff11\uff12", "12", "wrong"),
        ("paris.", "paris", "wrong"),
        ("1.0", "1", "wrong"),
    ],
)
def test_exact(answer: str, gold: str, verdict: str) -> None:
    assert exact.verify(answer, problem(gold)) == verdict


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("B", "correct"),
        ("b", "correct"),
        ("(B)", "correct"),
        ("B.", "correct"),
        ("\\text{B}", "correct"),
        ("\\textbf{(B)}", "correct"),
        ("$\\mathrm{B}$", "correct"),
        ("(B) 12 joules", "correct"),
        ("B: 12 joules", "correct"),
        ("C", "wrong"),
        ("B, C", "unparsable"),
        ("B or C", "unparsable"),
        ("Because", "unparsable"),
        ("\uff22", "unparsable"),  # a full-width letter
        ("\u0412", "unparsable"),  # a Cyrillic one
        ("12", "unparsable"),
        ("B" + "." * 1_000, "unparsable"),
    ],
)
def test_choice(answer: str, verdict: str) -> None:
    assert choice.verify(answer, problem("B")) == verdict
    assert choice.gold_defect(problem("B")) is None
    assert choice.gold_defect(problem("12")) == "the gold answer is no capital letter"


def test_an_answer_too_long_to_parse_is_unparsable() -> None:
    assert math.verify("9" * 1_001, problem("34")) == "unparsable"
    assert math.verify("  ", problem("34")) == "unparsable"


@pytest.mark.parametrize("gold", ["?", "§ 5 ¶", "see above: 5; 6 | 7"])
def test_a_gold_answer_that_is_no_mathematics_is_found(gold: str) -> None:
    assert math.gold_defect(problem(gold)) == "the gold answer is no mathematical expression"


@pytest.mark.parametrize("gold", ["34", "50\\%", "\\frac{\\pi}{2}", "(-\\infty, 3)", "x=3"])
def test_a_mathematical_gold_answer_is_fine(gold: str) -> None:
    assert math.gold_defect(problem(gold)) is None


def test_a_partial_score_of_reasoning_gym_is_no_reward() -> None:
    chain_sum = task_problem("chain_sum")
    dataset = create_dataset("chain_sum", size=1, seed=0)
    verbose = f"about {chain_sum.answer}"
    assert 0 < dataset.score_answer(verbose, chain_sum.metadata["entry"]) < 1
    assert reasoning_gym.verify(verbose, chain_sum) == "wrong"
    assert reasoning_gym.verify(chain_sum.answer, chain_sum) == "correct"


def test_another_solution_of_a_task_with_many_is_correct() -> None:
    countdown = task_problem("countdown", min_numbers=2, max_numbers=2)
    numbers = countdown.metadata["entry"]["metadata"]["numbers"]
    target = countdown.metadata["entry"]["metadata"]["target"]
    a, b = numbers
    solutions = [f"({x}) {op} ({y})" for x, y in ((a, b), (b, a)) for op in "+-*/"]
    verdicts = {text: reasoning_gym.verify(text, countdown) for text in solutions}
    right = [text for text in solutions if abs(eval(text) - target) < 1e-9]
    assert right and all((verdicts[text] == "correct") == (text in right) for text in solutions)


def test_the_options_of_the_task_reach_its_scoring() -> None:
    """puzzle24 checks its numbers against the limits it was generated with."""
    answer = "6 * 4 * 1 * 1"
    assert reasoning_gym.verify(answer, task_problem("puzzle24", min_value=1)) == "correct"
    assert reasoning_gym.verify(answer, task_problem("puzzle24", min_value=2)) == "wrong"


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "exec(chr(1))",
        "().__class__",
        "x.free_symbols",
        "x . y",
        "[1][0]",
        "{1: 2}",
        "lambda: 1",
        "1or(open)",
        "1if x else y",
        "S('1')",
        "open(1)",
        "\uff45xec(1)",
        "0x10",
        "f''",
        "x=1",
        "1+" * 500 + "1",
        "x\x00",
    ],
)
def test_text_that_could_do_more_than_arithmetic_is_not_inert(text: str) -> None:
    assert not reasoning_gym.is_inert(text)


@pytest.mark.parametrize(
    "text", ["(3 + 4)*5 - 2**2", "3.5*x**2 - sin(x)/2 + C", "_ Q _\nQ _ _", "1 2 3", "5!", "x^2, y"]
)
def test_arithmetic_is_inert(text: str) -> None:
    assert reasoning_gym.is_inert(text)


@given(st.text(st.sampled_from("exvalopn_(). '\"[]{}:=,1+\n"), max_size=40))
def test_inert_text_names_nothing_but_letters(text: str) -> None:
    if reasoning_gym.is_inert(text):
        names = re.findall(r"[^\W\d]\w*", text)
        assert all(len(name) == 1 or name in {"pi", "exp", "log", "ln", "abs"} for name in names)
        assert not set(text) & set("'\"[]{}:=")


@pytest.mark.parametrize("task", ["n_queens", "spiral_matrix", "binary_matrix", "string_insertion"])
def test_tasks_that_evaluate_answers_still_accept_honest_ones(task: str) -> None:
    made = task_problem(task)
    assert reasoning_gym.verify(made.answer, made) == "correct"
    assert reasoning_gym.verify("print(1)", made) == "unparsable"


def test_every_task_of_the_installed_library_that_evaluates_text_is_known() -> None:
    """A new version that evaluates answers elsewhere must be read before it is trusted.

    Outside ``score_answer`` the modules below evaluate what they generated themselves.
    """
    harmless = {"basic_arithmetic", "bitwise_arithmetic", "codeio", "number_sorting", "propositional_logic"}
    evaluates = re.compile(r"(?<![\w.])(?:eval|exec|(?:sympy\.|sp\.)?(?:parse_expr|sympify))\(")
    found = {
        task
        for task, (dataset_class, _) in DATASETS.items()
        if evaluates.search(inspect.getsource(sys.modules[dataset_class.__module__]))
    }
    guarded = {task for task in found if reasoning_gym._evaluates_answer(task)}
    assert found - guarded == harmless
    assert guarded == {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }


def test_a_task_that_refuses_its_own_answer_is_found() -> None:
    """rearc compares tuples, and JSON makes lists of them."""
    assert "does not accept its own answer" in (reasoning_gym.gold_defect(task_problem("rearc")) or "")
    assert reasoning_gym.gold_defect(task_problem("chain_sum")) is None
