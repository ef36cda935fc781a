"""Growing many trees at once on one sampler, without a barrier between rounds.

Every tree goes its own pace (:mod:`nemo_ibtpo.tree.growing_tree`): the moment it is known where it branches next,
that is submitted, while others are anywhere in their growth. What the tests hold:

- The trees depend on the tasks, the seed and what the source samples for a request, not on the order in which
  rollouts, rewards and reports arrive nor on how many trees are in flight.
- The seed of a request derives from the run's seed, the prompt and the number of the trajectory by a hash that
  is the same in every process.
- A trajectory that hit the length limit is scored like any other; one that repeats a known trajectory shares
  its reward.
- A source that answers what was not asked, breaks a limit or falls silent ends growth with an error.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nemo_ibtpo.tree.branching import BranchingStrategy
from nemo_ibtpo.tree.growing_tree import GrowingTree, GrowthTask
from nemo_ibtpo.tree.rollouts import RewardSource, RolloutSource
from nemo_ibtpo.tree.steps import Splitter
from nemo_ibtpo.tree.tree import Tree

IDLE_S = 0.001  # a turn of the loop in which nothing happened lasts at least so long: no busy waiting


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
    idle_s: float = IDLE_S,
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
        idle_s: shortest time of a turn in which nothing arrived; 0 where time is simulated.

    Raises:
        ValueError: ``max_in_flight`` is below 1, or a reward lies outside [0, 1].
        RuntimeError: the source or the rewards broke their protocol or fell silent.
    """
    if max_in_flight < 1:
        raise ValueError(f"max_in_flight={max_in_flight}: at least one tree must be allowed to grow")
    occurrences: Counter[str] = Counter()
    waiting: deque[GrowingTree] = deque()
    for index, task in enumerate(tasks):
        identity = (seed, task.prompt_id, occurrences[task.prompt_id])
        waiting.append(GrowingTree(index, task, identity, strategy, splitter, max_new_tokens))
        occurrences[task.prompt_id] += 1
    trees = [growing.tree for growing in waiting]
    work = WorkInFlight(source, rewards, stall_timeout_s, idle_s, has_window=strategy.window > 1)
    while waiting or work.growing:
        while waiting and len(work.growing) < max_in_flight:
            work.add(waiting.popleft())
        arrived, touched = work.turn()
        for growing in touched:
            if growing.is_complete:
                work.remove(growing)
                if on_tree is not None:
                    on_tree(growing.key, growing.tree)
        if arrived and on_progress is not None:
            done = len(trees) - len(waiting) - len(work.growing)
            on_progress(GrowthProgress(done, len(trees), work.trajectories, work.sampled_tokens))
    return trees


class WorkInFlight:
    """Carries requests, rollouts and rewards between trees that grow and those who sample and score.

    Args:
        source, rewards, stall_timeout_s, idle_s: see :func:`grow`.
        has_window: whether trees branch before all of their sequences have ended, so that it matters how far they
        are.

    Attributes:
        growing: the trees, by key.
        trajectories, sampled_tokens: rollouts that arrived, and their tokens.
    """

    def __init__(
        self, source: RolloutSource, rewards: RewardSource, stall_timeout_s: float, idle_s: float, *, has_window: bool
    ) -> None:
        self.growing: dict[int, GrowingTree] = {}
        self.trajectories = 0
        self.sampled_tokens = 0
        self._source = source
        self._rewards = rewards
        self._stall_timeout_s = stall_timeout_s
        self._idle_s = idle_s
        self._has_window = has_window
        self._in_the_way: dict[int, dict[tuple[int, int], int]] = {}  # by tree
        self._wanted: dict[Hashable, int] = {}  # all of these
        self._last_arrival = time.monotonic()
        self._touched: dict[int, GrowingTree] = {}

    def add(self, growing: GrowingTree) -> None:
        """Let a tree grow from now on."""
        self.growing[growing.key] = growing
        self._touched[growing.key] = growing

    def remove(self, growing: GrowingTree) -> None:
        """Let a tree go that waits for nothing."""
        del self.growing[growing.key]

    def turn(self) -> tuple[bool, list[GrowingTree]]:
        """Move what there is to be moved: whether a rollout or a reward arrived, and the trees that were touched.

        Raises:
            ValueError, RuntimeError: see :func:`grow`.
        """
        began = time.monotonic()
        touched, self._touched = self._touched, {}
        self._advance(touched.values())
        rollouts = self._take_rollouts(touched)
        self._report(self._wanted, touched)
        scores = self._take_rewards(touched)
        self._advance(touched.values())
        if self._has_window:
            self._note_in_the_way(touched)
        self._wait(began, arrived=rollouts or scores)
        return rollouts or scores, list(touched.values())

    def take_reports(self, ticks: Mapping[int, int]) -> list[GrowingTree]:
        """Hear of sequences that are past a tick; the trees whose :attr:`GrowingTree.earliest` may have changed.

        Args:
            ticks: by the key of the tree, of its own clock.
        """
        heard: dict[int, GrowingTree] = {}
        each = [self.growing[key].behind(tick) for key, tick in ticks.items()]
        self._report({request_id: count for own in each for request_id, count in own.items()}, heard)
        self._touched |= heard
        return list(heard.values())

    def cut(self, ticks: Mapping[int, int]) -> None:
        """Stop growing: every sequence has been sampled up to its tree's tick, and every reward has come.

        Args:
            ticks: by the key of the tree, before its :attr:`GrowingTree.earliest` or not before that of a complete
            one.
        """
        each = [growing.needed(ticks[growing.key]) for growing in self.growing.values()]
        needed: dict[Hashable, int] = {request_id: count for own in each for request_id, count in own.items()}
        for unfinished in self._source.cut(needed):
            growing, number = self._find(unfinished.request_id, "the sampler cut off a request")
            if len(unfinished.tokens) < needed[unfinished.request_id]:
                raise RuntimeError(
                    f"tree {growing.tree.prompt_id!r}, trajectory {number}: the sampler cut it off after "
                    f"{len(unfinished.tokens)} tokens; {needed[unfinished.request_id]} were asked for"
                )
            growing.interrupt(number, unfinished)
            self.sampled_tokens += len(unfinished.tokens)
        ignored: dict[int, GrowingTree] = {}
        while any(growing.awaits_sampler or growing.awaits_rewards for growing in self.growing.values()):
            began = time.monotonic()
            rollouts = self._take_rollouts(ignored)
            self._wait(began, arrived=self._take_rewards(ignored) or rollouts)

    def _take_rollouts(self, touched: dict[int, GrowingTree]) -> bool:
        rollouts = self._source.poll()
        for rollout in rollouts:
            growing, number = self._find(rollout.request_id, "the sampler returned a rollout")
            self.trajectories += 1
            self.sampled_tokens += len(rollout.tokens)
            if (response := growing.accept(number, rollout)) is not None:
                self._rewards.submit((growing.key, number), growing.tree.prompt_id, response)
            touched[growing.key] = growing
        return bool(rollouts)

    def _note_in_the_way(self, touched: Mapping[int, GrowingTree]) -> None:
        """Take down whom to hear of in the next turn."""
        for key, growing in touched.items():
            for request_id in self._in_the_way.pop(key, ()):
                del self._wanted[request_id]
            if in_the_way := growing.in_the_way():
                self._in_the_way[key] = in_the_way
                self._wanted.update(in_the_way)

    def _report(self, at_least: Mapping[Hashable, int], touched: dict[int, GrowingTree]) -> None:
        if at_least:
            for request_id, count in self._source.progress(at_least).items():
                growing, number = self._find(request_id, "the sampler reported a request")
                growing.report(number, count)
                touched[growing.key] = growing

    def _take_rewards(self, touched: dict[int, GrowingTree]) -> bool:
        scores = self._rewards.poll()
        for key, reward in scores:
            growing, number = self._find(key, "the verifier returned a reward")
            growing.score(number, reward)
            touched[growing.key] = growing
        return bool(scores)

    def _wait(self, began: float, *, arrived: bool) -> None:
        """A little, if nothing arrived in this turn.

        Raises:
            RuntimeError: nothing has arrived for too long.
        """
        now = time.monotonic()
        if arrived:
            self._last_arrival = now
        elif now - self._last_arrival > self._stall_timeout_s:
            if any(growing.awaits_sampler or growing.awaits_rewards for growing in self.growing.values()):
                raise RuntimeError(self._describe_stall())
            self._last_arrival = now  # what it waits for is another owner's
        elif now - began < self._idle_s:
            time.sleep(self._idle_s - (now - began))

    def _advance(self, touched: Iterable[GrowingTree]) -> None:
        requests = [request for growing in touched for request in growing.advance()]
        if requests:
            self._source.submit(requests)

    def _find(self, key: Hashable, what: str) -> tuple[GrowingTree, int]:
        """The tree that a key of ours, (tree, trajectory), belongs to, and the number of the trajectory."""
        if not (isinstance(key, tuple) and len(key) == 2 and key[0] in self.growing):
            raise RuntimeError(f"{what} that is not awaited: {key!r}")
        return self.growing[key[0]], key[1]

    def _describe_stall(self) -> str:
        sampling = [growing.tree.prompt_id for growing in self.growing.values() if growing.awaits_sampler]
        scoring = [growing.tree.prompt_id for growing in self.growing.values() if growing.awaits_rewards]
        return (
            f"growth stalled: neither a rollout nor a reward arrived for {self._stall_timeout_s:g} s while "
            f"{len(sampling)} trees waited for rollouts {sampling[:3]} and {len(scoring)} for rewards {scoring[:3]} "
            "(up to 3 prompts named)"
        )
