"""Dynamic sampling (DAPO, arXiv 2503.14476): other prompts in the place of those whose rewards are all equal.

Prompts are drawn until the step has its number of mixed groups, at most ``trainer.refill`` of them beyond the first
ones (our choice: DAPO bounds the batches that it generates). What is missing is drawn at once, so that a step has a
few rounds of sampling. Every rank knows all trees and draws the same prompts; no prompt is drawn twice in a step.

Where the bound is reached first the step keeps as many of the equal groups as it needs, and the method treats them as
without a refill.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemo_ibtpo.config.schema import TrainerConfig
from nemo_ibtpo.data.loader import Prompts
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.tree.tree import Tree


def further_problems(trees: Sequence[Tree], prompts: Prompts, trainer: TrainerConfig) -> list[Problem]:
    """Problems to sample next in the step that has sampled ``trees``; none if it has enough or may have no more."""
    drawn = len(trees) - trainer.num_prompts_per_step
    missing = trainer.num_prompts_per_step - sum(tree.is_mixed for tree in trees)
    count = min(missing, trainer.refill - drawn, len(prompts) - len(trees))
    return prompts.next(count, apart_from=[tree.prompt_id for tree in trees]) if count > 0 else []


def to_train(trees: Sequence[Tree], count: int) -> list[Tree]:
    """The trees that a step trains on, in the order in which they were drawn: all but the first equal ones."""
    equal = [index for index, tree in enumerate(trees) if not tree.is_mixed] if len(trees) > count else []
    replaced = set(equal[: len(trees) - count])
    return [tree for index, tree in enumerate(trees) if index not in replaced]
