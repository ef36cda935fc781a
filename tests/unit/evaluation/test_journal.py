"""A killed evaluation goes on to the result it would have had, and never mixes with another one.

Why it matters: an evaluation of hours that starts anew after a kill is not run twice, and one that silently goes on
with samples of another model is a wrong number. The sampler here is a small real one that depends on the seed alone;
the kill of a real process is in ``tests/e2e/test_eval.py``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from reward_settings import reward_config

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.evaluation.evaluator import evaluate
from nemo_ibtpo.evaluation.journal import Journal, JournaledSource
from nemo_ibtpo.evaluation.result import EvaluationResult
from nemo_ibtpo.rewards.pool import VerifierPool
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest
from nemo_ibtpo.tree.steps import StepSplitter

TOKENIZER = byte_tokenizer()
TEXTS = ["\\boxed{yes}<eos>", "Well\n\n\\boxed{no}<eos>", "?<eos>"]
PROBLEMS = [Problem(f"p{i}", f"q{i}", "yes", "exact", {}, tuple(TOKENIZER(f"q{i}").input_ids)) for i in range(4)]
SETTINGS: dict[str, Any] = {"model_digest": "a", "seed": 1, "data": {"path": "here"}}


class SeededSampler:
    """Answers a request with the text that its seed chooses; counts what it was asked for."""

    def __init__(self) -> None:
        self.asked = 0
        self._waiting: list[RolloutRequest] = []

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        self.asked += len(requests)
        self._waiting += requests

    def poll(self) -> list[Rollout]:
        done, self._waiting = self._waiting[:3], self._waiting[3:]
        texts = [tuple(TOKENIZER(random.Random(request.seed).choice(TEXTS)).input_ids) for request in done]
        return [Rollout(r.request_id, t, (-1.0,) * len(t), "eos") for r, t in zip(done, texts, strict=True)]


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    pool = VerifierPool(TOKENIZER, reward_config(num_workers=1, timeout_s=30.0))
    pool.set_problems(PROBLEMS)
    yield pool
    pool.close()


def run(path: Path, pool: VerifierPool) -> tuple[EvaluationResult, int]:
    """The result, and how many responses had to be sampled."""
    sampler = SeededSampler()
    with Journal(path, SETTINGS) as journal:
        result = evaluate(
            PROBLEMS,
            JournaledSource(sampler, journal),
            pool,
            splitter=StepSplitter(TOKENIZER),
            samples_per_problem=5,
            max_new_tokens=64,
            seed=1,
            settings=SETTINGS,
        )
    return result, sampler.asked


def test_a_journal_cut_at_any_byte_is_continued_to_the_same_result(pool: VerifierPool, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole, asked = run(path, pool)
    assert asked == 20 and {sample.verdict for sample in whole.samples} == {"correct", "wrong", "unparsable"}
    content = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    for cut in (0, 5, ends[0] - 1, ends[0], ends[0] + 3, ends[7], ends[7] + 1, ends[12] - 1, len(content)):
        path.write_bytes(content[:cut])
        again, asked = run(path, pool)
        assert again == whole
        assert asked == 20 - max(0, sum(end <= cut for end in ends) - 1)
        assert sorted(path.read_bytes().splitlines()) == sorted(content.splitlines())


def test_another_evaluations_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, SETTINGS).__exit__(None, None, None)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"unfinished evaluation with other settings .*model_digest: 'a', here 'b'"):
        Journal(path, SETTINGS | {"model_digest": "b"})
    with pytest.raises(UserError, match=r"temperature: None, here 0.5"):
        Journal(path, SETTINGS | {"temperature": 0.5})
    assert path.read_bytes() == before
    with Journal(path, SETTINGS | {"data": {"path": "a copy"}}):
        pass  # where the data lie decides nothing


def test_a_journal_in_use_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", SETTINGS), pytest.raises(UserError, match="is in use"):
        Journal(tmp_path / "journal.jsonl", SETTINGS)


@pytest.mark.parametrize(
    ("line", "number"),
    [(b"{", 3), (b'{"seed": 1}', 3), (b"[]", 3), (b"\xff\xfe", 3)],
)
def test_a_damaged_line_is_named(tmp_path: Path, pool: VerifierPool, line: bytes, number: int) -> None:
    path = tmp_path / "journal.jsonl"
    run(path, pool)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[: number - 1], line, *lines[number:], b""]))
    with pytest.raises(UserError, match=f"journal.jsonl, line {number} is damaged"):
        Journal(path, SETTINGS)


@pytest.mark.parametrize("content", ["hello\n", "[1]\n", '{"format": "other"}\n'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "journal.jsonl").write_text(content)
    with pytest.raises(UserError, match="line 1 is damaged"):
        Journal(tmp_path / "journal.jsonl", SETTINGS)
