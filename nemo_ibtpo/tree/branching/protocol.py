"""What a strategy is asked and answers, and the two things that most of them need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import numpy as np

from nemo_ibtpo.tree.tree import IntArray, Tree

NOTHING_IN_FLIGHT: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class BranchPoint:
    """A place to continue, and the number of continuations to sample there.

    Attributes:
        node: the step that the continuation's prefix ends with.
        rollouts: continuations.
        offset: tokens of the step that belong to the prefix, from 1 to one fewer than it has; None for all of
            them. A leaf can only be continued from inside.
    """

    node: int
    rollouts: int
    offset: int | None = None


class BranchingStrategy(Protocol):
    """Decides how a tree grows.

    Attributes:
        window: it is asked while fewer sequences of a tree are in flight; 1 asks it between rounds only.
    """

    @property
    def window(self) -> int: ...

    def next_round(
        self,
        tree: Tree,
        round: int,
        rng: np.random.Generator,
        in_flight: Mapping[int, int] = NOTHING_IN_FLIGHT,
    ) -> list[BranchPoint]:
        """Branch points of a round (0 is the first), distinct places; empty once nothing more is to be launched.

        All rewards in the tree are known. Trajectories of the round are numbered in the order of the answer.

        Args:
            tree: the trajectories that have ended.
            round: number of this round.
            rng: the tree's generator.
            in_flight: sequences in flight by the node that they were branched at.
        """


def share(points: Sequence[BranchPoint], rollouts: int) -> list[BranchPoint]:
    """The points with a round's rollouts spread evenly over them, the first ones taking one more.

    Points that are left without a rollout are left out.
    """
    each, left_over = divmod(rollouts, len(points))
    shared = [replace(point, rollouts=each + (place < left_over)) for place, point in enumerate(points)]
    return [point for point in shared if point.rollouts]


def depths(tree: Tree) -> IntArray:
    """Sampled tokens down to and including each node; [N], 0 at the root."""
    depth_N = [0]
    for node in tree.nodes[1:]:
        depth_N.append(depth_N[node.parent] + len(node.tokens))
    return np.array(depth_N)


def open_steps(tree: Tree, deepest: int) -> list[int]:
    """The root and every step that does not end its trajectory, at most ``deepest`` tokens deep; oldest first."""
    depth_N = depths(tree)
    return [node.index for node in tree.nodes if not node.is_leaf and depth_N[node.index] <= deepest]
