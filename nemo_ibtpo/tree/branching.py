"""Where a tree grows next: one strategy per sampler.

A strategy is asked round after round, when every reward of the tree is known, and answers with the nodes to
continue and how many rollouts each gets; an empty answer means that the tree is complete. All strategies reach
G = initial_rollouts + (rounds - 1) * branch_points * rollouts_per_branch trajectories.

Candidates (paper: nodes that are not leaves) are the root and every step that is not the last of its
trajectory, as long as ``min_new_tokens`` are left below it under the length limit (declared). Random choices
come from the generator that is passed in, one per tree, so that a tree does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import IBScoreConfig, SamplerConfig
from nemo_ibtpo.tree.ib_score import ib_scores
from nemo_ibtpo.tree.tree import ROOT, Tree


@dataclass(frozen=True, slots=True)
class BranchPoint:
    """A node to continue, and the number of continuations to sample there."""

    node: int
    rollouts: int


class BranchingStrategy(Protocol):
    """Decides how a tree grows."""

    def next_round(self, tree: Tree, round: int, rng: np.random.Generator) -> list[BranchPoint]:
        """Branch points of a round (0 is the first), distinct nodes; empty once the tree is complete.

        All rewards in the tree are known. Trajectories of the round are numbered in the order of the answer.
        """


class Ranking(Protocol):
    """Orders candidates."""

    def rank(self, tree: Tree, candidates: Sequence[int], rng: np.random.Generator) -> list[int]:
        """The candidates, the one to branch first at the front."""


@dataclass(frozen=True, slots=True)
class IBRanking:
    """Highest IB-Score first, equal scores oldest first (declared)."""

    config: IBScoreConfig

    def rank(self, tree: Tree, candidates: Sequence[int], rng: np.random.Generator) -> list[int]:
        """See :class:`Ranking`."""
        oldest_first = np.sort(candidates)
        scores = ib_scores(tree, self.config)[oldest_first]
        return [int(node) for node in oldest_first[np.argsort(-scores, kind="stable")]]


@dataclass(frozen=True, slots=True)
class RandomRanking:
    """Every order is equally likely."""

    def rank(self, tree: Tree, candidates: Sequence[int], rng: np.random.Generator) -> list[int]:
        """See :class:`Ranking`."""
        return [int(node) for node in rng.permutation(np.asarray(candidates))]


@dataclass(frozen=True, slots=True)
class IndependentSampling:
    """All trajectories from the root, at once."""

    trajectories: int

    def next_round(self, tree: Tree, round: int, rng: np.random.Generator) -> list[BranchPoint]:
        """See :class:`BranchingStrategy`."""
        return [BranchPoint(ROOT, self.trajectories)] if round == 0 else []


@dataclass(frozen=True, slots=True)
class RankedBranching:
    """Trajectories from the root, then rounds that continue the candidates ranked first (paper)."""

    ranking: Ranking
    sampler: SamplerConfig
    max_new_tokens: int

    def next_round(self, tree: Tree, round: int, rng: np.random.Generator) -> list[BranchPoint]:
        """See :class:`BranchingStrategy`."""
        if round == 0:
            return [BranchPoint(ROOT, self.sampler.initial_rollouts)]
        if round >= self.sampler.rounds:
            return []
        chosen = self.ranking.rank(tree, self._candidates(tree), rng)[: self.sampler.branch_points]
        # A small tree may have too few candidates: those it has share the round's rollouts, the first ones
        # taking one more where they do not divide, so that every tree reaches G (declared).
        each, left_over = divmod(self.sampler.branch_points * self.sampler.rollouts_per_branch, len(chosen))
        return [BranchPoint(node, each + (place < left_over)) for place, node in enumerate(chosen)]

    def _candidates(self, tree: Tree) -> list[int]:
        """Nodes that can be continued, oldest first; the root always is one (see :func:`make_strategy`)."""
        deepest = self.max_new_tokens - self.sampler.min_new_tokens
        depth_N = [0]
        for node in tree.nodes[1:]:
            depth_N.append(depth_N[node.parent] + len(node.tokens))
        return [node.index for node in tree.nodes if not node.is_leaf and depth_N[node.index] <= deepest]


def make_strategy(sampler: SamplerConfig, ib_score: IBScoreConfig, max_new_tokens: int) -> BranchingStrategy:
    """The strategy that ``sampler.name`` asks for.

    Args:
        sampler: sizes of the tree.
        ib_score: constants of the IB-Score; only ``ib`` reads them.
        max_new_tokens: most response tokens of a trajectory.

    Raises:
        UserError: not even the root would have room for ``min_new_tokens``.
    """
    if not 1 <= sampler.min_new_tokens <= max_new_tokens:
        raise UserError(
            f"sampler.min_new_tokens={sampler.min_new_tokens}: it must lie between 1 and "
            f"rollout.max_new_tokens={max_new_tokens}, or no node could be branched"
        )
    match sampler.name:
        case "independent":
            return IndependentSampling(sampler.trajectories_per_prompt)
        case "ib":
            return RankedBranching(IBRanking(ib_score), sampler, max_new_tokens)
        case "random":
            return RankedBranching(RandomRanking(), sampler, max_new_tokens)
    raise UserError(f"sampler.name={sampler.name!r} is unknown; it must be ib, random or independent")
