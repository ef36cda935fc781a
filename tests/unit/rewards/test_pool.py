"""Verification in real worker processes: every response gets its reward, once, whatever becomes of the workers.

Hostile answers are in ``test_hostile_answers.py``. Not exercised: many ranks on one machine, each with its own
workers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from byte_tokenizer import byte_tokenizer
from reasoning_gym.factory import create_dataset
from reward_settings import reward_config

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.data.load_report import LoadReport
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards.gold import keep_verifiable
from nemo_ibtpo.rewards.pool import VerifierPool

TOKENIZER = byte_tokenizer()
TIMEOUT_S = 4.0  # a busy machine can take seconds for a call


def task_problem(task: str) -> Problem:
    entry = create_dataset(task, size=1, seed=0)[0]
    metadata = {"task": task, "options": {}, "entry": entry}
    return Problem(task, entry["question"], entry["answer"], "reasoning_gym", metadata, (1, 2, 3))


MATH = Problem("math", "6 * 7?", "42", "math", {}, (1, 2, 3))
EXACT = Problem("exact", "Capital of France?", "Paris", "exact", {}, (1, 2, 3))
COUNTDOWN = task_problem("countdown")


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    pool = VerifierPool(TOKENIZER, reward_config(num_workers=2, timeout_s=TIMEOUT_S))
    pool.set_problems([MATH, EXACT, COUNTDOWN])
    yield pool
    pool.close()


def rewards(pool: VerifierPool, responses: list[tuple[Problem, str]]) -> list[float]:
    """Rewards of responses; fails if one is missing after a minute or comes twice."""
    for key, (problem, text) in enumerate(responses):
        pool.submit(key, problem.problem_id, tuple(TOKENIZER(text).input_ids))
    got: dict[Any, float] = {}
    deadline = time.monotonic() + 60
    while len(got) < len(responses):
        assert time.monotonic() < deadline, f"no reward for {set(range(len(responses))) - set(got)}"
        for key, reward in pool.poll():
            assert key not in got
            got[key] = reward
        time.sleep(0.005)
    assert pool.poll() == []
    return [got[key] for key in range(len(responses))]


def counted(pool: VerifierPool, before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in pool.counters.items() if count != before[name]}


def test_every_response_gets_its_own_reward_and_is_counted_once(pool: VerifierPool) -> None:
    before = dict(pool.counters)
    responses = [
        (MATH, "Let me see.\n\n\\boxed{42.0}<eos>"),
        (MATH, "\\boxed{41}"),
        (MATH, "It is 42."),
        (EXACT, "\\boxed{paris}"),
        (COUNTDOWN, f"\\boxed{{{COUNTDOWN.answer}}}"),
        (COUNTDOWN, "\\boxed{1 + 1}"),
        (COUNTDOWN, "\\boxed{"),
    ] * 20
    assert rewards(pool, responses) == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0] * 20
    assert counted(pool, before) == {"verified": 100, "unparsable": 40}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>perhaps \\boxed{1}</think>It is \\boxed{42}.", "42"),
        ("<think>a</think> \\boxed{1} <think>b</think> \\boxed{2}", "2"),  # the last one counts
        ("<think>perhaps \\boxed{42}</think>I do not know.", None),
        ("<think>surely \\boxed{42}", None),  # cut off while it reasons
    ],
)
def test_what_a_model_thinks_is_no_answer(text: str, answer: str | None) -> None:
    pool = VerifierPool(TOKENIZER, reward_config(num_workers=1, timeout_s=TIMEOUT_S, answer_after="</think>"))
    pool.set_problems([MATH])
    assert pool.answer("math", tuple(TOKENIZER(text).input_ids)) == answer
    pool.close()


def test_a_worker_killed_from_outside_is_replaced(pool: VerifierPool) -> None:
    for worker in pool._workers:
        psutil.Process(worker._process.pid).kill()
    before = dict(pool.counters)
    assert rewards(pool, [(EXACT, "\\boxed{Paris}")] * 4) == [1.0] * 4
    assert counted(pool, before) == {"verified": 4}


def test_an_error_of_the_verifier_itself_is_raised(pool: VerifierPool) -> None:
    """It must not pass for a wrong answer."""
    broken = Problem("broken", "q", "a", "reasoning_gym", {}, ())
    pool.set_problems([broken])
    pool.submit(0, "broken", tuple(TOKENIZER("\\boxed{a}").input_ids))
    with pytest.raises(RuntimeError, match="KeyError: 'entry'"):
        while True:
            pool.poll()
    pool.set_problems([MATH, EXACT, COUNTDOWN])


def test_an_unknown_problem_is_refused(pool: VerifierPool) -> None:
    with pytest.raises(ValueError, match="unknown problem 'nobody'"):
        pool.submit(0, "nobody", (1,))


def test_unusable_gold_answers_are_left_out_and_counted(pool: VerifierPool) -> None:
    gold = ["42", "?", "43", "¶"]
    problems = [Problem(str(i), "q", answer, "math", {}, ()) for i, answer in enumerate(gold)]
    report = LoadReport("a data set", rows=4, loaded=4)
    assert [p.answer for p in keep_verifiable(problems, pool, report)] == ["42", "43"]
    assert report.summary() == (
        "a data set: 2 problems from 4 rows; left out: 2 x the gold answer is no mathematical expression (first: '?')"
    )
    with pytest.raises(UserError, match="a data set: no usable problem"):
        keep_verifiable(problems[1:2], pool, LoadReport("a data set"))


def test_workers_do_not_outlive_a_killed_owner(tmp_path: Path) -> None:
    program = tmp_path / "owner.py"
    program.write_text(
        "import sys, time\n"
        "from reward_settings import reward_config\n"
        "from nemo_ibtpo.data.problems import Problem\n"
        "from nemo_ibtpo.rewards.pool import VerifierPool\n"
        "if __name__ == '__main__':\n"
        "    pool = VerifierPool(None, reward_config(num_workers=2, timeout_s=1.0))\n"
        "    pool.gold_defects([Problem('p', 'q', 'a', 'exact', {}, ())] * 4)\n"
        "    print({'torch', 'sympy', 'matplotlib'} & set(sys.modules), flush=True)\n"
        "    time.sleep(600)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    owner = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=env)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "set()\n", "none of them is needed where answers are not verified"
    children = psutil.Process(owner.pid).children(recursive=True)
    assert len(children) >= 3  # fork server and two workers
    owner.kill()
    owner.wait()
    owner.stdout.close()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, f"{len(gone)} of {len(children)} processes ended"
