"""Answers that a model might write, by chance or because a reward lies in it, to hang, crash or fool a verifier.

One answer that hangs, eats the memory or runs as a program would stop or corrupt a training run of days; one that is
paid for looking right teaches a model to write more of its kind. Every answer here goes to real worker processes, as
in training, costs at most the hard limits, and gets no reward. Not exercised: a kernel without RLIMIT_AS, and the
responses as a whole of verifier ``ifeval`` beyond the few below.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from byte_tokenizer import byte_tokenizer
from reasoning_gym.factory import create_dataset
from reward_settings import reward_config

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards import worker
from nemo_ibtpo.rewards.answers import has_lookalike_number
from nemo_ibtpo.rewards.limits import Limits
from nemo_ibtpo.rewards.pool import Outcome, VerifierPool
from nemo_ibtpo.rewards.process import CallCrashError, WorkerProcess
from nemo_ibtpo.rewards.verifiers import ifeval

TOKENIZER = byte_tokenizer()
TIMEOUT_S = 1.0


def task_problem(task: str, **options: Any) -> Problem:
    entry = create_dataset(task, **options, size=1, seed=0)[0]
    metadata = {"task": task, "options": options, "entry": entry}
    return Problem(task, entry["question"], entry["answer"], "reasoning_gym", metadata, ())


MATH = Problem("math", "3 * 4?", "12", "math", {}, ())
EXACT = Problem("exact", "3 * 4?", "12", "exact", {}, ())
CHOICE = Problem("choice", "3 * 4? A: 7 B: 12", "B", "choice", {}, ())
COUNTDOWN = task_problem("countdown")  # its scoring hands the answer to parse_expr
QUEENS = task_problem("n_queens")  # to eval
SUM = task_problem("chain_sum")  # to float
GCD = task_problem("gcd")  # to int
PROBLEMS = [MATH, EXACT, CHOICE, COUNTDOWN, QUEENS, SUM, GCD]

# Texts for every verifier that reads boxed answers.
TEXTS = {
    "power tower": "9^{9^{9^{9^{9}}}}",
    "power tower in Python": "9**9**9**9**9",
    "power of powers": "(9**99999)**99999",
    "factorials of factorials": "9!!!!!!!!!",
    "factorial in LaTeX": "(10^{10})!",
    "binomial": "\\binom{10^{9}}{5\\cdot 10^{8}}",
    "sum over everything": "\\sum_{i=1}^{10^{12}} \\frac{1}{i^{\\sqrt{i}}}",
    "integral": "\\int_0^{1} \\sin(x^{x^{x}}) \\, dx",
    "primes": "\\prod_{i=1}^{10^{9}} (x^{i}+1)",
    "nine hundred digits": "7" * 900,
    "a million digits": "7" * 1_000_000,
    "a small number with a huge exponent": "1e999999999",
    "deep parentheses": "(" * 499 + "1" + ")" * 499,
    "deep braces": "{" * 450 + "1" + "}" * 450,
    "deep fractions": "\\frac{" * 120 + "1" + "}{2}" * 120,
    "long chain of fractions": "+".join(["\\frac{1}{3}"] * 80),
    "fractions without arguments": "\\frac" * 150,
    "deep roots": "\\sqrt{" * 140 + "2" + "}" * 140,
    "scripts": "x" + "_{1}^{2}" * 110,
    "unbalanced": "\\left(" * 150,
    "matrix": "\\begin{pmatrix}" + " & ".join(["1"] * 400) + "\\end{pmatrix}",
    "a regular expression's nightmare": "a" * 500 + "\\" + "{" + " " * 450,
    "null bytes": "12\x00",
    "only null bytes": "\x00" * 50,
    "file inclusion": "\\input{/etc/passwd}",
    "macro": "\\def\\x{12}\\x",
    "macro that grows": "\\def\\a{\\a\\a}\\a",
    "catcodes": "\\catcode`\\%=12",
    "full-width digits": "\uff11\uff12",
    "one full-width digit": "1\uff12",
    "Arabic-Indic digits": "\u0661\u0662",
    "Devanagari digits": "\u0967\u0968",
    "mathematical digits": "\U0001d7cf\U0001d7d0",
    "superscript digits": "\u00b9\u00b2",
    "circled twelve": "\u246b",
    "Roman twelve": "\u216b",
    "underscore": "1_2",
    "right-to-left marks": "\u202e21\u202c",
    "zero-width space": "1\u200b2",
    "direction mark": "12\u200f",
    "combining marks": "1" + "\u0301" * 500 + "2",
    "not a number": "nan",
    "infinity": "inf",
    "a program": "__import__('pathlib').Path('PWNED').touch()",
    "a program in SymPy's clothes": 'S(\'__import__("pathlib").Path("PWNED").touch()\')',
    "attributes": "().__class__.__base__.__subclasses__()",
    "end of the process": "exit(0)",
    "format string": "{0.__class__}%s%n",
    "boxes in boxes": "\\boxed{" * 100 + "1" + "}" * 100,
}


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    pool = VerifierPool(TOKENIZER, reward_config(num_workers=2, timeout_s=TIMEOUT_S))
    yield pool
    pool.close()


def outcomes(pool: VerifierPool, responses: list[tuple[Problem, str]]) -> list[Outcome]:
    """What becomes of responses; fails if one never gets its verdict."""
    pool.set_problems([problem for problem, _ in responses])
    for key, (problem, text) in enumerate(responses):
        pool.submit(key, problem.problem_id, tuple(TOKENIZER(text).input_ids))
    got: dict[Any, Outcome] = {}
    deadline = time.monotonic() + 2 * TIMEOUT_S * len(responses) + 30
    while len(got) < len(responses):
        assert time.monotonic() < deadline, f"no verdict on {set(range(len(responses))) - set(got)}"
        got.update((key, judgement.outcome) for key, judgement in pool.poll_judgements())
        time.sleep(0.005)
    return [got[key] for key in range(len(responses))]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.problem_id)
def test_no_hostile_answer_is_rewarded_or_costs_more_than_the_limit(
    pool: VerifierPool, problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert outcomes(pool, [(problem, f"\\boxed{{{problem.answer}}}")]) == ["correct"]
    started = time.monotonic()
    got = dict(zip(TEXTS, outcomes(pool, [(problem, f"\\boxed{{{text}}}") for text in TEXTS.values()]), strict=True))
    seconds = time.monotonic() - started
    assert {name for name, outcome in got.items() if outcome == "correct"} == set()
    ended = sum(outcome in ("timeout", "crash") for outcome in got.values())
    assert seconds < (ended + 1) * TIMEOUT_S + 10, f"{ended} of {len(got)} answers ran into a limit"
    assert not Path("PWNED").exists()
    assert outcomes(pool, [(problem, f"\\boxed{{{problem.answer}}}")] * 4) == ["correct"] * 4, "workers live on"


def test_text_that_no_encoding_can_hold_reaches_the_verifiers_unharmed() -> None:
    """A tokenizer gives valid text; a surrogate could come from elsewhere and must not break the pipe."""
    process = WorkerProcess(5.0)
    verdicts = [process.call(worker.verify, "\ud800" + problem.answer, problem) for problem in PROBLEMS]
    process.close()
    assert "correct" not in verdicts


def test_the_memory_limit_holds_where_the_time_limit_does_not() -> None:
    """A verifier that allocates ends at once, is not tried twice, and takes no more than its limit."""
    process = WorkerProcess(60.0)
    process.call(abs, 1)
    before = psutil.Process(process._process.pid).memory_info().vms
    limit = psutil.Process(process._process.pid).rlimit(psutil.RLIMIT_AS)[0]
    assert limit <= before + Limits().memory_bytes
    started = time.monotonic()
    with pytest.raises(CallCrashError):
        process.call(bytearray, Limits().memory_bytes + (1 << 20))
    with pytest.raises(CallCrashError):
        process.call(_list_of_lists, 10**9)
    assert time.monotonic() - started < 30
    assert process.call(abs, -1) == 1
    process.close()


def _list_of_lists(length: int) -> int:
    return len([[i] for i in range(length)])


@pytest.mark.parametrize(
    ("answer", "gold", "lookalike"),
    [
        ("\uff11\uff12", "12", True),
        ("\u0661\u0662", "12", True),
        ("x\u00b2", "x^2", True),
        ("1_2", "12", True),
        ("12", "12", False),
        ("\u0661\u0662", "\u0661\u0662", False),  # the gold answer itself is written so
        ("x_1", "x_1", False),
        ("_ Q _", "Q _ _", False),
        ("caf\u00e9", "12", False),
    ],
)
def test_lookalike_numbers(answer: str, gold: str, lookalike: bool) -> None:
    assert has_lookalike_number(answer, gold) is lookalike


@pytest.mark.skipif(not ifeval.is_installed(), reason="extra `eval` (lm-eval) is not installed")
def test_hostile_responses_to_instructions(pool: VerifierPool) -> None:
    """Verifier ``ifeval`` reads whole responses with regular expressions."""
    names = ["detectable_format:json_format", "detectable_format:number_highlighted_sections", "startend:quotation"]
    metadata = {"instruction_id_list": names, "kwargs": [{}, {"num_highlights": 3}, {}]}
    problem = Problem("ifeval", "Write JSON.", ", ".join(names), "ifeval", metadata, ())
    texts = ["*" * 20_000, "[" * 20_000, '"' * 20_000, "\x00", "{" * 5_000 + "}" * 5_000, "\u202e*a*", "*a" * 9_000]
    assert "correct" not in outcomes(pool, [(problem, text) for text in texts])


CONVERTING_TASKS = ["decimal_arithmetic", "gsm_symbolic", "number_format", "number_sorting", "power_function"]


@pytest.mark.parametrize("first_digit", ["\uff10", "\u0660", "\u0966", "\U0001d7ce"], ids=ascii)
@pytest.mark.parametrize("task", CONVERTING_TASKS)
def test_the_right_number_in_another_scripts_digits_is_no_answer(task: str, first_digit: str) -> None:
    """These tasks score with ``int`` or ``float``, which would take it: ``int("\uff11\uff12") == 12``."""
    problem = task_problem(task)
    lookalike = problem.answer.translate({48 + digit: ord(first_digit) + digit for digit in range(10)})
    assert lookalike != problem.answer
    assert worker.verify(problem.answer, problem) == "correct"
    assert worker.verify(lookalike, problem) == "unparsable"
