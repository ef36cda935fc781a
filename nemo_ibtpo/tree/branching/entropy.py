"""``entropy``: fork at the tokens the policy was least sure of, EPTree of TreeRL (arXiv 2506.11902).

M chains from the prompt; in each of L rounds the N tokens of largest surprisal in every chain's tree, and T new
continuations from just before each of them: M * (N * L * T + 1) trajectories. In the names of the configuration
M = ``initial_rollouts``, L = ``rounds - 1``, M * N = ``branch_points``, T = ``rollouts_per_branch``. TreeRL publishes
(M, N, L, T) = (6, 2, 1, 2), that is 30 trajectories.

The surprisal is -log pi of the *sampled* token under the policy that sampled it, not the entropy of the distribution
(TreeRL). A fork lies inside a step as a rule, and :meth:`Tree.split` then makes two nodes of it.

Declared:

- A place where continuations were drawn more than once is not forked again, nor is the prompt; TreeRL masks the
  first token of every branch, which this includes.
- Chains that share their first steps share a tree: a token belongs to the oldest chain through it. What a chain's
  tree lacks in tokens to fork goes to the largest surprisals of the others.
- TreeRL also masks what follows the words "conclusion" and "answer"; that is not done here.
- Equal surprisals are taken oldest node first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from nemo_ibtpo.config.schema import SamplerConfig
from nemo_ibtpo.tree.branching.protocol import NOTHING_IN_FLIGHT, BranchPoint, depths, share
from nemo_ibtpo.tree.ib_score import draws_at
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


@dataclass(frozen=True, slots=True)
class _Fork:
    """A token that may be drawn again.

    Attributes:
        surprisal: of the token, in nats.
        chain: whose tree it belongs to.
        place: where the prefix before it ends.
    """

    surprisal: float
    chain: int
    place: BranchPoint


@dataclass(frozen=True, slots=True)
class EntropyBranching:
    """Chains from the root, then rounds that fork at the most surprising tokens."""

    sampler: SamplerConfig
    max_new_tokens: int
    window: int = 1

    def next_round(
        self,
        tree: Tree,
        round: int,
        rng: np.random.Generator,
        in_flight: Mapping[int, int] = NOTHING_IN_FLIGHT,
    ) -> list[BranchPoint]:
        """See :class:`~nemo_ibtpo.tree.branching.protocol.BranchingStrategy`."""
        sampler = self.sampler
        if round == 0:
            return [BranchPoint(ROOT, sampler.initial_rollouts)]
        if round >= sampler.rounds:
            return []
        forks = sorted(self._forks(tree), key=lambda fork: -fork.surprisal)
        quota = sampler.branch_points // sampler.initial_rollouts
        taken: dict[int, int] = {}
        first: list[BranchPoint] = []
        rest: list[BranchPoint] = []
        for fork in forks:
            taken[fork.chain] = taken.get(fork.chain, 0) + 1
            (first if taken[fork.chain] <= quota else rest).append(fork.place)
        chosen = [*first, *rest][: sampler.branch_points] or [BranchPoint(ROOT, 0)]
        return share(chosen, sampler.branch_points * sampler.rollouts_per_branch)

    def _forks(self, tree: Tree) -> Iterator[_Fork]:
        """Tokens that may be drawn again, oldest node first."""
        deepest = self.max_new_tokens - self.sampler.min_new_tokens
        depth_N, drawn_N, chain_N = depths(tree), draws_at(tree), _chains(tree)
        for node in tree.nodes[1:]:
            before = depth_N[node.parent]
            for offset in range(min(len(node.tokens), deepest - before + 1)):
                if offset == 0 and (node.parent == ROOT or drawn_N[node.parent] > 1):
                    continue
                place = BranchPoint(node.index, 0, offset) if offset else BranchPoint(node.parent, 0)
                yield _Fork(-node.logprobs[offset], chain_N[node.index], place)


def _chains(tree: Tree) -> list[int]:
    """The chain that each node belongs to: the oldest trajectory of the first round through it, or through the
    node of the first round that it grew from."""
    chain_N = list(range(len(tree.nodes)))
    for node in reversed(tree.nodes[1:]):  # what a trajectory is known by is its leaf
        if node.round == 0 and node.children:
            chain_N[node.index] = min(chain_N[c] for c in node.children if tree.nodes[c].round == 0)
    for node in tree.nodes[1:]:
        if node.round > 0:
            chain_N[node.index] = chain_N[node.parent]
    return chain_N
