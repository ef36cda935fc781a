"""Reward functions of the user's, in the worker processes that they run in when a model is trained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from reward_settings import reward_config

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards.pool import VerifierPool, reward_metrics
from nemo_ibtpo.rewards.worker import Judgement

TOKENIZER = byte_tokenizer()
FUNCTIONS = """
import asyncio, os, pathlib, socket, time
from beside import HALF

def length(response, response_tokens):
    return {"score": min(1.0, len(response) / 10), "tokens": response_tokens, "double": 2 * len(response)}

def everything(prompt, response, answer, row):
    return 1.0 if (prompt, response, answer, row["level"]) == ("2 + 2?", "four", "4", 3) else 0.0

def lists(responses, answers, *, bonus=0.0):
    return [HALF * (response == answer) + bonus / len(responses) for response, answer in zip(responses, answers)]

async def waits(response):
    await asyncio.sleep(0.2)
    return float(response == "4")

def fails(response):
    return {"raises": lambda: 1 / 0, "nan": lambda: float("nan"), "two": lambda: 2.0, "none": lambda: None,
            "text": lambda: "1", "no score": lambda: {"x": 1}, "hangs": lambda: time.sleep(60),
            "dies": lambda: os._exit(1), "memory": lambda: len(bytearray(4 << 30)),
            "file": lambda: pathlib.Path(__file__).with_name("written").write_text("text"),
            "network": lambda: socket.create_connection(("127.0.0.1", 9)).close()}.get(response, lambda: 1.0)()

def wants(colour):
    return 1.0
"""


@pytest.fixture
def functions(tmp_path: Path) -> str:
    (tmp_path / "beside.py").write_text("HALF = 0.5\n")
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    return f"{tmp_path}/mine.py"


def problem(question: str = "2 + 2?", answer: str = "4") -> Problem:
    return Problem("id", question, answer, "exact", {"row": {"level": 3}}, ())


@pytest.fixture
def judged() -> Iterator[Any]:
    pools: list[VerifierPool] = []

    def judge(responses: list[str], **config: Any) -> tuple[list[Judgement], dict[str, float]]:
        pool = VerifierPool(TOKENIZER, reward_config(**{"num_workers": 1, "timeout_s": 3.0} | config))
        pools.append(pool)
        assert pool.gold_defects([problem()]) == []
        pool.set_problems([problem()])
        for key, text in enumerate(responses):
            pool.submit(key, "id", tuple(TOKENIZER(text).input_ids))
        found: dict[Any, Judgement] = {}
        deadline = time.monotonic() + 120
        while len(found) < len(responses):
            assert time.monotonic() < deadline
            found.update(pool.poll_judgements())
            time.sleep(0.01)
        return [found[key] for key in range(len(responses))], reward_metrics([pool.take_counts()])

    yield judge
    for pool in pools:
        pool.close()


def test_a_function_gets_what_it_names_and_its_numbers_become_metrics(functions: str, judged: Any) -> None:
    judgements, metrics = judged(["four", "abcdefghijkl"], function=f"{functions}:length")
    assert [judgement.reward for judgement in judgements] == [0.4, 1.0]
    assert metrics["reward/double"] == (8 + 24) / 2 and metrics["reward/tokens"] > 0
    assert (metrics["reward/verified"], metrics["reward/errors"]) == (2, 0)
    assert judged(["four"], function=f"{functions}:everything")[0][0].reward == 1.0


def test_lists_and_coroutines_judge_a_batch_in_one_call(functions: str, judged: Any) -> None:
    judgements, _ = judged(["4", "5"] * 8, function=f"{functions}:lists", batch_size=8)
    assert [judgement.reward for judgement in judgements] == [0.5, 0.0] * 8
    options = {"function": f"{functions}:lists", "options": {"bonus": 0.1}, "batch_size": 1}
    assert judged(["5"], **options)[0][0].reward == 0.1
    # 16 x 0.2 s one after the other would exceed the limit of a call
    judgements, _ = judged(["4"] * 16, function=f"{functions}:waits", batch_size=16, timeout_s=3.0)
    assert [judgement.reward for judgement in judgements] == [1.0] * 16


def test_parts_are_weighed_and_each_is_a_metric(functions: str, judged: Any) -> None:
    parts = {
        "right": {"function": "verifier", "weight": 3},
        "format": {"function": "nemo_ibtpo.rewards.library.format:boxed", "weight": 1},
    }
    judgements, metrics = judged(["\\boxed{4}", "\\boxed{5}", "4"], parts=parts)
    assert [judgement.reward for judgement in judgements] == [1.0, 0.25, 0.0]
    assert (metrics["reward/right"], metrics["reward/format"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("response", "said", "outcome"),
    [
        ("raises", "ZeroDivisionError: division by zero", "error"),
        ("nan", "score is nan, not a finite number", "error"),
        ("two", "the score 2 is not in [0, 1]", "error"),
        ("none", "score is None, not a finite number", "error"),
        ("text", "score is '1', not a finite number", "error"),
        ("no score", "no 'score' among x", "error"),
        ("file", "File too large", "error"),
        ("network", "set reward.network=true", "error"),
        ("hangs", "longer than 3 s", "timeout"),
        ("dies", "the process died", "crash"),
        ("memory", "the process died", "crash"),
    ],
)
def test_what_goes_wrong_scores_0_and_is_counted(
    functions: str, judged: Any, response: str, said: str, outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    judgements, metrics = judged([response, "fine"], function=f"{functions}:fails")
    assert [judgement.reward for judgement in judgements] == [0.0, 1.0]
    assert judgements[0].outcome == outcome and said in (judgements[0].error or "")
    name = {"error": "errors", "timeout": "timeouts", "crash": "crashes"}[outcome]
    assert (metrics[f"reward/{name}"], metrics["reward/verified"]) == (1, 1)
    assert said in capsys.readouterr().err, "the first one is shown"


def test_too_many_failures_end_the_run_with_the_first_of_them(functions: str, judged: Any) -> None:
    judged(["raises"] * 2 + ["fine"] * 18, function=f"{functions}:fails")
    with pytest.raises(UserError, match=r"failed for 3 of \d+ responses.*ZeroDivisionError"):
        judged(["raises"] * 3 + ["fine"] * 17, function=f"{functions}:fails")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("{}:nothing", "has no function 'nothing'"),
        ("{}:wants", "asks for 'colour'"),
        ("no_such_package.module:f", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_at_the_start(functions: str, name: str, reason: str) -> None:
    pool = VerifierPool(TOKENIZER, reward_config(1, 3.0, function=name.format(functions)))
    with pytest.raises(UserError, match=reason):
        pool.gold_defects([problem()])
    pool.close()
