"""Verification in worker processes with hard limits: the ``RewardSource`` of training and evaluation.

Invariants (asserted by ``tests/unit/rewards``):

- Every response that was submitted gets exactly one reward, 1.0 for a correct answer and 0.0 for anything else,
  and is counted in exactly one of ``counters``' places.
- No answer, however hostile, takes more than the time and memory of its own verification, and the process that
  owns the pool never parses one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, Literal

from nemo_ibtpo.config.schema import RewardConfig
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards import worker
from nemo_ibtpo.rewards.answers import extract_boxed
from nemo_ibtpo.rewards.process import CallCrashError, CallTimeoutError, WorkerProcess
from nemo_ibtpo.rewards.verifiers import WHOLE_RESPONSE, Verdict

Outcome = Verdict | Literal["timeout", "crash"]
_COUNTER: dict[Outcome, str] = {
    "correct": "verified",
    "wrong": "verified",
    "unparsable": "unparsable",
    "timeout": "timeouts",
    "crash": "crashes",
}


class VerifierPool:
    """Judges responses to known problems.

    A thread per worker process hands it one answer after the other, so that a verification starts when a worker
    is free, not when somebody polls. The processes start with the first problems: a rank without problems has none.

    Args:
        tokenizer: a Hugging Face tokenizer; decodes responses, special tokens left out.
        config: number of workers and time limit.

    Attributes:
        counters: responses by what became of them, since the pool was made or the last
            ``take_counts``: ``verified`` (judged correct or
            wrong), ``unparsable`` (no boxed answer, or one that the verifier cannot read), ``timeouts`` and
            ``crashes`` (the worker died of it). A response enters when its reward is polled.
    """

    def __init__(self, tokenizer: Any, config: RewardConfig) -> None:
        self.counters: dict[str, int] = dict.fromkeys(_COUNTER.values(), 0)
        self._tokenizer = tokenizer
        self._problems: dict[str, Problem] = {}
        self._finished: SimpleQueue[tuple[Hashable, Future[Outcome]]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(config.num_workers, thread_name_prefix="verifier")
        self._config = config
        self._workers: list[WorkerProcess] = []
        self._idle: SimpleQueue[WorkerProcess] = SimpleQueue()

    def set_problems(self, problems: Sequence[Problem]) -> None:
        """The problems whose responses are submitted from now on; replaces those known before."""
        if problems:
            self._start_workers()
        # A verifier does not need the prompt, and every verification sends its problem to a worker.
        self._problems = {problem.problem_id: replace(problem, prompt_tokens=()) for problem in problems}

    def text(self, response_tokens: tuple[int, ...]) -> str:
        """A response as text, special tokens left out."""
        text: str = self._tokenizer.decode(list(response_tokens), skip_special_tokens=True)
        return text

    def answer(self, prompt_id: str, response_tokens: tuple[int, ...]) -> str | None:
        """What is judged: the boxed answer of a response, or all of it if the problem's verifier wants that; None if
        there is none.

        Raises:
            ValueError: no problem of that id was set.
        """
        text = self.text(response_tokens)
        if self._problem(prompt_id).verifier in WHOLE_RESPONSE:
            return text.strip() or None
        return extract_boxed(text)

    def submit(self, key: Hashable, prompt_id: str, response_tokens: tuple[int, ...]) -> None:
        """Accept a response without waiting for its score.

        Raises:
            ValueError: no problem of that id was set.
        """
        problem = self._problem(prompt_id)
        answer = self.answer(prompt_id, response_tokens)
        if answer is None:
            future: Future[Outcome] = Future()
            future.set_result("unparsable")
        else:
            future = self._threads.submit(self._verify, answer, problem)
        future.add_done_callback(lambda done: self._finished.put((key, done)))

    def poll(self) -> list[tuple[Hashable, float]]:
        """Rewards that have become known since the last call.

        Raises:
            RuntimeError: a verifier is broken (an error of its code, not of an answer).
        """
        return [(key, 1.0 if outcome == "correct" else 0.0) for key, outcome in self.poll_outcomes()]

    def poll_outcomes(self) -> list[tuple[Hashable, Outcome]]:
        """As :meth:`poll`, with what became of each response in the place of its reward."""
        outcomes: list[tuple[Hashable, Outcome]] = []
        for _ in range(self._finished.qsize()):
            key, future = self._finished.get()
            outcome = future.result()
            self.counters[_COUNTER[outcome]] += 1
            outcomes.append((key, outcome))
        return outcomes

    def take_counts(self) -> dict[str, int]:
        """The counters since the last call, which start again at 0."""
        counts, self.counters = self.counters, dict.fromkeys(self.counters, 0)
        return counts

    def gold_defects(self, problems: Sequence[Problem]) -> list[tuple[Problem, str]]:
        """The problems whose gold answers no answer could be judged against, each with the reason.

        Looks at every problem and waits for the last.
        """
        self._start_workers()
        found = zip(problems, self._threads.map(self._gold_defect, problems), strict=True)
        return [(problem, defect) for problem, defect in found if defect is not None]

    def close(self) -> None:
        """End the workers, once the verifications that have begun are over; the others are dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._workers:
            process.close()

    def _problem(self, prompt_id: str) -> Problem:
        if (problem := self._problems.get(prompt_id)) is None:
            raise ValueError(f"response to the unknown problem {prompt_id!r}: call set_problems first")
        return problem

    def _start_workers(self) -> None:
        if not self._workers:
            self._workers = [WorkerProcess(self._config.timeout_s) for _ in range(self._config.num_workers)]
            for process in self._workers:
                self._idle.put(process)

    def _verify(self, answer: str, problem: Problem) -> Outcome:
        try:
            return self._call(worker.verify, answer, problem)
        except CallTimeoutError:
            return "timeout"
        except CallCrashError:
            return "crash"

    def _gold_defect(self, problem: Problem) -> str | None:
        try:
            return self._call(worker.gold_defect, replace(problem, prompt_tokens=()))
        except CallTimeoutError:
            return "verifying the gold answer takes too long"
        except CallCrashError:
            return "verifying the gold answer crashes the verifier"

    def _call(self, function: Any, *args: Any) -> Any:
        process = self._idle.get()
        try:
            return process.call(function, *args)
        finally:
            self._idle.put(process)
