"""Rewards from worker processes with hard limits: the ``RewardSource`` of training and evaluation.

Invariants (asserted by ``tests/unit/rewards``):

- Every response that was submitted gets exactly one reward, 1.0 for a correct answer and 0.0 for anything else (or
  what the user's functions say), and is counted in exactly one of ``counters``' places.
- No answer, however hostile, takes more than the time and memory of its own verification, and the process that
  owns the pool never parses one.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import RewardConfig
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards import worker
from nemo_ibtpo.rewards.answers import extract_boxed
from nemo_ibtpo.rewards.functions import VERIFIER, Part
from nemo_ibtpo.rewards.limits import Limits
from nemo_ibtpo.rewards.process import CallCrashError, CallTimeoutError, WorkerProcess
from nemo_ibtpo.rewards.verifiers import WHOLE_RESPONSE
from nemo_ibtpo.rewards.worker import Judgement, Outcome

_COUNTER: dict[Outcome, str] = {
    "correct": "verified",
    "wrong": "verified",
    "scored": "verified",
    "unparsable": "unparsable",
    "timeout": "timeouts",
    "crash": "crashes",
    "error": "errors",
}
_SUM, _NUMBER = "sum of ", "number of "  # of the parts, among the counts
_FEW = 20  # responses: a share of fewer says nothing yet
_GIB = 2**30


class VerifierPool:
    """Judges responses to known problems.

    A thread per worker process hands it responses, so that a verification starts when a worker is free, not when
    somebody polls. The processes start with the first problems: a rank without problems has none.

    Args:
        tokenizer: a Hugging Face tokenizer; decodes responses, special tokens left out.
        config: number of workers, limits, and the user's functions if there are any.

    Attributes:
        counters: responses by what became of them, since the pool was made or the last
            ``take_counts``: ``verified`` (judged correct or wrong, or scored by a function), ``unparsable`` (no boxed
            answer, or one that the verifier cannot read), ``timeouts``, ``crashes`` (the worker died of it) and
            ``errors`` (a function raised or returned no number in [0, 1]). A response enters when its reward is
            polled.
    """

    def __init__(self, tokenizer: Any, config: RewardConfig) -> None:
        self.counters: dict[str, float] = dict.fromkeys(dict.fromkeys(_COUNTER.values()), 0)
        self._tokenizer = tokenizer
        self._problems: dict[str, Problem] = {}
        self._finished: SimpleQueue[tuple[Hashable, Future[Judgement]]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(config.num_workers, thread_name_prefix="verifier")
        self._config = config
        self._parts = reward_parts(config)
        self._waiting: SimpleQueue[tuple[tuple[Problem, str, str | None, int], Future[Judgement]]] = SimpleQueue()
        self._workers: list[WorkerProcess] = []
        self._idle: SimpleQueue[WorkerProcess] = SimpleQueue()
        self._judged: Counter[Outcome] = Counter()
        self._first_error: str | None = None

    @property
    def uses_verifiers(self) -> bool:
        """Whether gold answers are judged by the data sets' verifiers, alone or beside functions."""
        return not self._parts or any(part.function == VERIFIER for part in self._parts)

    def set_problems(self, problems: Sequence[Problem]) -> None:
        """The problems whose responses are submitted from now on; replaces those known before."""
        if problems:
            self._start_workers(problems)
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
        return self._answer(self._problem(prompt_id), self.text(response_tokens))

    def submit(self, key: Hashable, prompt_id: str, response_tokens: tuple[int, ...]) -> None:
        """Accept a response without waiting for its score.

        Raises:
            ValueError: no problem of that id was set.
        """
        problem = self._problem(prompt_id)
        text = self.text(response_tokens)
        answer = self._answer(problem, text)
        future: Future[Judgement] = Future()
        future.add_done_callback(lambda done: self._finished.put((key, done)))
        if not self._parts and answer is None:
            future.set_result(Judgement("unparsable", 0.0))
            return
        self._waiting.put(((problem, text, answer, len(response_tokens)), future))
        self._threads.submit(self._judge_waiting)

    def poll(self) -> list[tuple[Hashable, float]]:
        """Rewards that have become known since the last call.

        Raises:
            RuntimeError: a verifier is broken (an error of its code, not of an answer).
            UserError: a function fails too often.
        """
        return [(key, judgement.reward) for key, judgement in self.poll_judgements()]

    def poll_judgements(self) -> list[tuple[Hashable, Judgement]]:
        """As :meth:`poll`, with all that is known of each response in the place of its reward."""
        judgements: list[tuple[Hashable, Judgement]] = []
        for _ in range(self._finished.qsize()):
            key, future = self._finished.get()
            judgement = future.result()
            self.counters[_COUNTER[judgement.outcome]] += 1
            for name, value in judgement.parts.items():
                self.counters[_SUM + name] = self.counters.get(_SUM + name, 0.0) + value
                self.counters[_NUMBER + name] = self.counters.get(_NUMBER + name, 0) + 1
            self._watch_errors(judgement)
            judgements.append((key, judgement))
        return judgements

    def take_counts(self) -> dict[str, float]:
        """The counters since the last call, which start again at 0; ``reward_metrics`` makes metrics of them."""
        counts, self.counters = self.counters, dict.fromkeys(dict.fromkeys(_COUNTER.values()), 0)
        return counts

    def gold_defects(self, problems: Sequence[Problem]) -> list[tuple[Problem, str]]:
        """The problems whose gold answers no answer could be judged against, each with the reason.

        Looks at every problem and waits for the last; at none if no verifier judges.

        Raises:
            UserError: a reward function cannot be called.
        """
        self._start_workers(problems)
        if defects := self._call(worker.function_defects, self._parts):
            raise UserError(f"reward function: {defects[0]}")
        if not self.uses_verifiers:
            return []
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

    def _answer(self, problem: Problem, text: str) -> str | None:
        if (marker := self._config.answer_after) is not None:
            _, found, text = text.rpartition(marker)
            if not found:  # the reasoning was cut off: what it says on the way is no answer
                return None
        return text.strip() or None if problem.verifier in WHOLE_RESPONSE else extract_boxed(text)

    def _start_workers(self, problems: Sequence[Problem]) -> None:
        """Start processes that have the problems' verifiers; each import takes seconds."""
        if self._workers:
            return
        config = self._config
        limits = Limits(int(config.memory_gib * _GIB), config.write_files, config.network)
        names = [part.function for part in self._parts if part.function != VERIFIER]
        used = sorted({problem.verifier for problem in problems}) if self.uses_verifiers else []
        self._workers = [WorkerProcess(config.timeout_s, limits, names, used) for _ in range(config.num_workers)]
        for process in self._workers:
            self._idle.put(process)

    def _judge_waiting(self) -> None:
        """Judge what waits, up to a batch of it; perhaps another thread has taken it all."""
        batch: list[tuple[tuple[Problem, str, str | None, int], Future[Judgement]]] = []
        while len(batch) < (self._config.batch_size if self._parts else 1):
            try:
                batch.append(self._waiting.get_nowait())
            except Empty:
                break
        if not batch:
            return
        try:
            judgements = self._judge([response for response, _ in batch])
        except BaseException as error:
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), judgement in zip(batch, judgements, strict=True):
            future.set_result(judgement)

    def _judge(self, responses: Sequence[tuple[Problem, str, str | None, int]]) -> list[Judgement]:
        tolerance = self._config.math_tolerance
        try:
            if self._parts:
                judgements: list[Judgement] = self._call(worker.judge, responses, self._parts, tolerance)
                return judgements
            problem, _, answer, _ = responses[0]
            verdict = self._call(worker.verify, answer, problem, tolerance)
            return [Judgement(verdict, float(verdict == "correct"))]
        except CallTimeoutError:
            return [Judgement("timeout", 0.0, error=f"longer than {self._config.timeout_s:g} s")] * len(responses)
        except CallCrashError:
            return [Judgement("crash", 0.0, error="the process died (out of memory?)")] * len(responses)

    def _watch_errors(self, judgement: Judgement) -> None:
        if not self._parts:
            return
        self._judged[judgement.outcome] += 1
        if judgement.error is None:
            return
        if self._first_error is None:
            self._first_error = judgement.error
            print(f"reward function failed, first: {judgement.error}", file=sys.stderr, flush=True)
        failed = sum(self._judged[outcome] for outcome in ("timeout", "crash", "error"))
        total = self._judged.total()
        if failed > self._config.max_error_share * max(total, _FEW):
            raise UserError(
                f"the reward function failed for {failed} of {total} responses, more than reward.max_error_share="
                f"{self._config.max_error_share:g} allows; first: {self._first_error}"
            )

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


def reward_parts(config: RewardConfig) -> list[Part]:
    """The functions that make a reward, none if the data sets' verifiers alone do."""
    if config.function is not None:
        return [Part("", config.function, 1.0, config.options)]
    return [
        Part(name, part["function"], float(part["weight"]), part.get("options", {}))
        for name, part in config.parts.items()
    ]


def reward_metrics(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """What several pools counted (:meth:`VerifierPool.take_counts`) as metrics: sums, and means of the parts."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)  # floats add up as well
    metrics = {f"reward/{name}": float(total[name]) for name in total if not name.startswith((_SUM, _NUMBER))}
    for name in sorted(total):
        if name.startswith(_SUM):
            part = name.removeprefix(_SUM)
            metrics[f"reward/{part}"] = total[name] / total[_NUMBER + part]
    return metrics
