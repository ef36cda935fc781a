"""Growing many trees at once on one sampler, without a barrier between rounds.

Every tree goes its own pace: the moment its round is sampled and scored, its next round is submitted, while
others are anywhere in theirs. What the tests hold:

- The trees depend on the tasks, the seed and what the source samples for a request, not on the order in which
  rollouts and rewards arrive nor on how many trees are in flight: a round is inserted in the order of its
  trajectory numbers, once it is complete.
- The seed of a request derives from the run's seed, the prompt and the number of the trajectory by a hash that
  is the same in every process.
- A trajectory that hit the length limit is scored like any other; one that repeats a known trajectory shares
  its reward.
- A source that answers what was not asked, breaks a limit or falls silent ends growth with an error.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nemo_ibtpo.tree.branching import BranchingStrategy
from nemo_ibtpo.tree.rollouts import RewardSource, Rollout, RolloutRequest, RolloutSource
from nemo_ibtpo.tree.steps import Splitter
from nemo_ibtpo.tree.tree import ROOT, Step, Tree

_IDLE_S = 0.001  # a turn of the loop in which nothing happened lasts at least so long: no busy waiting


@dataclass(frozen=True, slots=True)
class GrowthTask:
    """A prompt to grow a tree for."""

    prompt_id: str
    prompt_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GrowthProgress:
    """What has been done so far: finished trees of all, trajectories and tokens sampled."""

    trees: int
    total_trees: int
    trajectories: int
    sampled_tokens: int


def grow(
    tasks: Sequence[GrowthTask],
    *,
    source: RolloutSource,
    rewards: RewardSource,
    strategy: BranchingStrategy,
    splitter: Splitter,
    max_new_tokens: int,
    seed: int,
    max_in_flight: int,
    on_progress: Callable[[GrowthProgress], None] | None = None,
    on_tree: Callable[[int, Tree], None] | None = None,
    stall_timeout_s: float = 3600.0,
) -> list[Tree]:
    """Grow one tree per task and return them in the order of the tasks.

    Args:
        tasks: the prompts. A prompt that comes twice gets two different trees.
        source: samples continuations; must be idle, and is idle afterwards.
        rewards: scores responses; likewise.
        strategy: decides where trees branch and when they are complete.
        splitter: cuts continuations into steps.
        max_new_tokens: most response tokens of a trajectory.
        seed: the seed of this growth; another one gives other trees.
        max_in_flight: most trees grown at once.
        on_progress: called whenever rollouts or rewards have arrived.
        on_tree: called with the index of its task and the tree when one is complete.
        stall_timeout_s: growth gives up when for so long neither a rollout nor a reward has arrived.

    Raises:
        ValueError: ``max_in_flight`` is below 1, or a reward lies outside [0, 1].
        RuntimeError: the source or the rewards broke their protocol or fell silent.
    """
    if max_in_flight < 1:
        raise ValueError(f"max_in_flight={max_in_flight}: at least one tree must be allowed to grow")
    occurrences: Counter[str] = Counter()
    waiting: deque[_GrowingTree] = deque()
    for index, task in enumerate(tasks):
        identity = (seed, task.prompt_id, occurrences[task.prompt_id])
        waiting.append(_GrowingTree(index, task, identity, strategy, max_new_tokens))
        occurrences[task.prompt_id] += 1
    trees = [growing.tree for growing in waiting]
    in_flight: dict[int, _GrowingTree] = {}
    trajectories = sampled_tokens = 0

    def advance(growing: _GrowingTree) -> None:
        """Start the tree's next round, or let it go if it is complete."""
        if requests := growing.next_round():
            source.submit(requests)
        else:
            del in_flight[growing.index]
            if on_tree is not None:
                on_tree(growing.index, growing.tree)

    last_arrival = time.monotonic()
    while waiting or in_flight:
        turn_began = time.monotonic()
        while waiting and len(in_flight) < max_in_flight:
            growing = waiting.popleft()
            in_flight[growing.index] = growing
            advance(growing)

        rollouts = source.poll()
        for rollout in rollouts:
            growing, number = _find(in_flight, rollout.request_id, "the sampler returned a rollout")
            growing.accept(number, rollout)
            trajectories += 1
            sampled_tokens += len(rollout.tokens)
            if not growing.unanswered:
                for leaf in growing.insert_round(splitter):
                    response = growing.tree.response_tokens(leaf)
                    rewards.submit((growing.index, leaf), growing.tree.prompt_id, response)
                if not growing.unscored:  # every trajectory of the round was known already
                    advance(growing)

        scores = rewards.poll()
        for key, reward in scores:
            growing, leaf = _find(in_flight, key, "the verifier returned a reward")
            growing.score(leaf, reward)
            if not growing.unscored:
                advance(growing)

        now = time.monotonic()
        if rollouts or scores:
            last_arrival = now
            if on_progress is not None:
                done = len(trees) - len(waiting) - len(in_flight)
                on_progress(GrowthProgress(done, len(trees), trajectories, sampled_tokens))
        elif now - last_arrival > stall_timeout_s:
            raise RuntimeError(_describe_stall(in_flight.values(), stall_timeout_s))
        elif now - turn_began < _IDLE_S:
            time.sleep(_IDLE_S - (now - turn_began))
    return trees


class _GrowingTree:
    """A tree and what its current round waits for.

    A round is first sampled (``unanswered`` requests by trajectory number), then scored (``unscored`` leaves).
    """

    def __init__(
        self,
        index: int,
        task: GrowthTask,
        identity: tuple[int, str, int],
        strategy: BranchingStrategy,
        max_new_tokens: int,
    ) -> None:
        self.index = index
        self.tree = Tree(task.prompt_id, task.prompt_tokens)
        self.unanswered: dict[int, RolloutRequest] = {}
        self.unscored: set[int] = set()
        self._identity = identity
        self._strategy = strategy
        self._max_new_tokens = max_new_tokens
        self._rng = np.random.default_rng(_derive_seed(*identity, "branching"))
        self._rounds = 0
        self._trajectories = 0
        self._branch_node: dict[int, int] = {}  # of each trajectory of the round, in trajectory order
        self._answers: dict[int, Rollout] = {}

    def next_round(self) -> list[RolloutRequest]:
        """The requests of the next round; empty once the tree is complete."""
        points = self._strategy.next_round(self.tree, self._rounds, self._rng)
        self._rounds += 1
        self._branch_node = {}
        branch_nodes = self.tree.split([(p.node, p.offset or len(self.tree.nodes[p.node].tokens)) for p in points])
        for point, node in zip(points, branch_nodes, strict=True):
            room = self._max_new_tokens - self.tree.depth_tokens(node)
            if room < 1:
                raise RuntimeError(
                    f"tree {self.tree.prompt_id!r}: the strategy branches node {node}, but no token is "
                    f"left below it under max_new_tokens={self._max_new_tokens}"
                )
            prefix = self.tree.nodes[ROOT].tokens + self.tree.response_tokens(node)
            for _ in range(point.rollouts):
                number = self._trajectories
                self._trajectories += 1
                self._branch_node[number] = node
                seed = _derive_seed(*self._identity, number)
                self.unanswered[number] = RolloutRequest((self.index, number), prefix, room, seed)
        return list(self.unanswered.values())

    def accept(self, number: int, rollout: Rollout) -> None:
        """Keep the rollout of a trajectory until its round is complete."""
        request = self.unanswered.pop(number, None)
        if request is None:
            raise RuntimeError(f"the sampler returned a rollout that is not awaited: {rollout.request_id!r}")
        where = f"tree {self.tree.prompt_id!r}, trajectory {number}"
        if not 1 <= len(rollout.tokens) <= request.max_new_tokens:
            raise RuntimeError(
                f"{where}: the sampler returned {len(rollout.tokens)} tokens; "
                f"between 1 and {request.max_new_tokens} were asked for"
            )
        if len(rollout.logprobs) != len(rollout.tokens):
            raise RuntimeError(
                f"{where}: the sampler returned {len(rollout.logprobs)} log-probabilities "
                f"for {len(rollout.tokens)} tokens"
            )
        if not all(map(math.isfinite, rollout.logprobs)):
            raise RuntimeError(f"{where}: the sampler returned a log-probability that is not finite")
        self._answers[number] = rollout

    def insert_round(self, splitter: Splitter) -> list[int]:
        """Insert the round's trajectories in order and return the leaves whose reward is not known."""
        for number, branch_node in self._branch_node.items():
            rollout = self._answers.pop(number)
            steps = _continuation_steps(splitter, self.tree.response_tokens(branch_node), rollout)
            leaf = self.tree.insert(branch_node, steps, rollout.finish_reason, round=self._rounds - 1)
            if self.tree.nodes[leaf].reward is None:
                self.unscored.add(leaf)
        return sorted(self.unscored)

    def score(self, leaf: int, reward: float) -> None:
        """Set the reward of a leaf of the current round."""
        if leaf not in self.unscored:
            raise RuntimeError(f"the verifier returned a reward that is not awaited: {(self.index, leaf)!r}")
        self.unscored.remove(leaf)
        self.tree.set_reward(leaf, reward)


def _continuation_steps(splitter: Splitter, prefix: tuple[int, ...], rollout: Rollout) -> list[Step]:
    """The steps of a continuation, cut where they would have been cut inside the whole response."""
    done = len(prefix)
    ends = [step.stop - done for step in splitter.split(prefix + rollout.tokens) if step.stop > done]
    return [(rollout.tokens[start:end], rollout.logprobs[start:end]) for start, end in pairwise([0, *ends])]


def _find(in_flight: dict[int, _GrowingTree], key: Hashable, what: str) -> tuple[_GrowingTree, int]:
    """The tree that a key of ours, (task index, trajectory or leaf), belongs to, and the rest of the key."""
    if not (isinstance(key, tuple) and len(key) == 2 and key[0] in in_flight):
        raise RuntimeError(f"{what} that is not awaited: {key!r}")
    return in_flight[key[0]], key[1]


def _derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63), the same in every process (Python's own hash is not)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _describe_stall(in_flight: Collection[_GrowingTree], silent_s: float) -> str:
    sampling = [growing.tree.prompt_id for growing in in_flight if growing.unanswered]
    scoring = [growing.tree.prompt_id for growing in in_flight if growing.unscored]
    return (
        f"growth stalled: neither a rollout nor a reward arrived for {silent_s:g} s while {len(sampling)} trees "
        f"waited for rollouts {sampling[:3]} and {len(scoring)} for rewards {scoring[:3]} (up to 3 prompts named)"
    )
