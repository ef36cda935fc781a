"""Samples responses to problems and has them verified: the same in training and offline.

Sampling is ``tree.growth.grow`` with independent trajectories. There is one sampling driver, so that an
evaluation measures what training sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.evaluation.result import EvaluationResult, Sample
from nemo_ibtpo.tree.branching import IndependentSampling
from nemo_ibtpo.tree.growth import GrowthProgress, GrowthTask, grow
from nemo_ibtpo.tree.rollouts import RewardSource, RolloutSource
from nemo_ibtpo.tree.steps import StepSplitter
from nemo_ibtpo.tree.tree import Tree


class AnswerVerifier(RewardSource, Protocol):
    """Scores responses and can also say what their answers are (``rewards.pool.VerifierPool``)."""

    def answer(self, response_tokens: tuple[int, ...]) -> str | None:
        """The boxed answer of a response, or None."""


def evaluate(
    problems: Sequence[Problem],
    source: RolloutSource,
    rewards: AnswerVerifier,
    *,
    splitter: StepSplitter,
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
    trees = grow(
        [GrowthTask(problem.problem_id, problem.prompt_tokens) for problem in problems],
        source=source,
        rewards=rewards,
        strategy=IndependentSampling(samples_per_problem),
        splitter=splitter,
        max_new_tokens=max_new_tokens,
        seed=seed,
        max_in_flight=max(len(problems), 1),  # the engine queues what it cannot decode at once
        on_progress=on_progress,
    )
    own = {"samples_per_problem": samples_per_problem, "max_new_tokens": max_new_tokens, "seed": seed}
    samples = tuple(sample for tree in trees for sample in _samples(tree, rewards))
    return EvaluationResult(samples, samples_per_problem, settings | own)


def _samples(tree: Tree, rewards: AnswerVerifier) -> list[Sample]:
    """The tree's trajectories, one sample per draw: equal responses share a leaf."""
    samples: list[Sample] = []
    for leaf in tree.leaves():
        assert leaf.reward is not None and leaf.finish_reason is not None  # grow returns complete trees
        tokens = tree.response_tokens(leaf.index)
        answer = rewards.answer(tokens)
        for _ in range(leaf.draws):
            number = len(samples)
            samples.append(Sample(tree.prompt_id, number, tokens, answer, leaf.reward, leaf.finish_reason))
    return samples
