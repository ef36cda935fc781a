"""Samples responses to problems and has them verified: the same in training and offline.

Sampling is ``tree.growth.grow`` with independent trajectories. There is one sampling driver, so that an
evaluation measures what training sees.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.evaluation.result import EvaluationResult, Sample, Verdict
from nemo_ibtpo.tree.branching import IndependentSampling
from nemo_ibtpo.tree.growth import GrowthProgress, GrowthTask, grow
from nemo_ibtpo.tree.rollouts import RewardSource, RolloutSource
from nemo_ibtpo.tree.steps import Splitter
from nemo_ibtpo.tree.tree import Tree


class Judgement(Protocol):
    """What became of a response (``rewards.worker.Judgement``)."""

    @property
    def outcome(self) -> Verdict: ...
    @property
    def reward(self) -> float: ...
    @property
    def parts(self) -> Mapping[str, float]: ...


class AnswerVerifier(Protocol):
    """Judges responses and says how it reads them (``rewards.pool.VerifierPool``)."""

    def submit(self, key: Hashable, prompt_id: str, response_tokens: tuple[int, ...]) -> None:
        """Accept a response without waiting for its verdict."""

    def poll_judgements(self) -> Sequence[tuple[Hashable, Judgement]]:
        """What has become known of responses since the last call."""

    def text(self, response_tokens: tuple[int, ...]) -> str:
        """A response as text."""

    def answer(self, prompt_id: str, response_tokens: tuple[int, ...]) -> str | None:
        """What is judged of a response, or None if there is nothing to judge."""


def evaluate(
    problems: Sequence[Problem],
    source: RolloutSource,
    rewards: AnswerVerifier,
    *,
    splitter: Splitter,
    samples_per_problem: int,
    max_new_tokens: int,
    seed: int,
    settings: dict[str, Any],
    on_progress: Callable[[GrowthProgress], None] | None = None,
) -> EvaluationResult:
    """Evaluate the policy behind ``source``.

    Args:
        problems: perhaps none, on a rank that has no share of them.
        source: samples responses, with whatever temperature it is set to; must be idle.
        rewards: knows the problems.
        splitter: cuts responses into steps; no figure depends on it.
        samples_per_problem: k of avg@k.
        max_new_tokens: most tokens of a response.
        seed: the same seed samples the same responses, whatever ranks the problems are spread over.
        settings: how prompts are made and tokens drawn (template, temperature, ...), stored with the result.
        on_progress: called as responses arrive.
    """
    verdicts = _VerdictKeeper(rewards)
    trees = grow(
        [GrowthTask(problem.problem_id, problem.prompt_tokens) for problem in problems],
        source=source,
        rewards=verdicts,
        strategy=IndependentSampling(samples_per_problem),
        splitter=splitter,
        max_new_tokens=max_new_tokens,
        seed=seed,
        max_in_flight=max(len(problems), 1),  # the engine queues what it cannot decode at once
        on_progress=on_progress,
    )
    own = {"samples_per_problem": samples_per_problem, "max_new_tokens": max_new_tokens, "seed": seed}
    samples = tuple(sample for tree in trees for sample in _samples(tree, rewards, verdicts.known))
    return EvaluationResult(samples, samples_per_problem, settings | own)


class _VerdictKeeper(RewardSource):
    """Hands responses to the verifier and its verdicts on as rewards, and remembers them.

    Attributes:
        known: judgements by problem and response.
    """

    def __init__(self, rewards: AnswerVerifier) -> None:
        self.known: dict[tuple[str, tuple[int, ...]], Judgement] = {}
        self._rewards = rewards
        self._waiting: dict[Hashable, tuple[str, tuple[int, ...]]] = {}

    def submit(self, key: Hashable, prompt_id: str, response_tokens: tuple[int, ...]) -> None:
        self._waiting[key] = prompt_id, response_tokens
        self._rewards.submit(key, prompt_id, response_tokens)

    def poll(self) -> list[tuple[Hashable, float]]:
        judgements = self._rewards.poll_judgements()
        for key, judgement in judgements:
            self.known[self._waiting.pop(key)] = judgement
        return [(key, judgement.reward) for key, judgement in judgements]


def _samples(
    tree: Tree, rewards: AnswerVerifier, judgements: dict[tuple[str, tuple[int, ...]], Judgement]
) -> list[Sample]:
    """The tree's trajectories, one sample per draw: equal responses share a leaf."""
    samples: list[Sample] = []
    for leaf in tree.leaves():
        assert leaf.reward is not None and leaf.finish_reason is not None  # grow returns complete trees
        tokens = tree.response_tokens(leaf.index)
        first = Sample(
            prompt_id=tree.prompt_id,
            sample=len(samples),
            tokens=tokens,
            text=rewards.text(tokens),
            answer=rewards.answer(tree.prompt_id, tokens),
            verdict=judgements[tree.prompt_id, tokens].outcome,
            parts=dict(judgements[tree.prompt_id, tokens].parts),
            reward=leaf.reward,
            finish_reason=leaf.finish_reason,
        )
        samples += [replace(first, sample=first.sample + draw) for draw in range(leaf.draws)]
    return samples
