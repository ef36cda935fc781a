"""One tree while it grows: its clock, its sequences in flight, and the moment of its next branch.

A tree has a clock of its own that counts tokens. All sequences in flight advance alike, one token a tick: one that
was launched at tick s and turns out to have n tokens ends at tick s + n. Whatever happens in a tree happens in the
order of these ends, and at each of them the tree knows the sequences that ended by then, no others. So a tree depends
on its prompt, the weights and the seed; the order in which rollouts and rewards arrive only decides how soon it is
known.

- A branch is chosen as soon as fewer sequences are in flight than the strategy's ``window``. Those that ended since
  the last choice are inserted first, in the order of their numbers. With a window of 1 that is growth in rounds.
- An end is *settled* when no other sequence in flight can still come before it. What the sampler reports of sequences
  that still run settles ends early; without such reports growth waits longer and grows the same tree.
- A tree can be cut at a tick: what was sampled later is forgotten. Its trajectories up to there are all that is kept
  of it, and growing it again from them (``sampled``) leads to the same state.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from nemo_ibtpo.tree.branching import BranchingStrategy
from nemo_ibtpo.tree.node import ROOT, FinishReason
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest, Unfinished
from nemo_ibtpo.tree.steps import Splitter
from nemo_ibtpo.tree.tree import Tree


@dataclass(frozen=True, slots=True)
class GrowthTask:
    """A prompt to grow a tree for.

    Attributes:
        prompt_id, prompt_tokens: see :class:`~nemo_ibtpo.tree.tree.Tree`.
        merge: whether equal steps at a place become one node.
    """

    prompt_id: str
    prompt_tokens: tuple[int, ...]
    merge: bool = True


@dataclass(frozen=True, slots=True)
class Sampled:
    """What has been sampled of a trajectory behind the place where it was branched.

    Attributes:
        tokens: token ids, perhaps none yet.
        logprobs: of each token, under the policy that sampled it.
        versions: the version of that policy for each token; empty where versions are not counted.
        finish_reason: None if it has not ended.
        reward: of the whole response; None if it has not ended.
        kept: what each token was drawn from, where sampling is truncated; see ``Node.kept``.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    versions: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    reward: float | None = None
    kept: tuple[bytes, ...] = ()

    def first(self, count: int) -> Sampled:
        """The first tokens; all of them if there are no more than that."""
        if count >= len(self.tokens):
            return self
        return Sampled(self.tokens[:count], self.logprobs[:count], self.versions[:count], kept=self.kept[:count])


@dataclass(slots=True)
class _Trajectory:
    """A trajectory from its launch on.

    Attributes:
        number: trajectories are numbered as they are launched.
        node: where it was branched.
        round: the choice that it was launched by.
        start: tick of its launch.
        before: response tokens in front of its own.
        sampled: what is known of it.
        awaited: the request that the sampler has not answered.
        reported: tokens that the sampler has drawn for that request, at least, and goes on.
    """

    number: int
    node: int
    round: int
    start: int
    before: tuple[int, ...]
    sampled: Sampled
    awaited: RolloutRequest | None = None
    reported: int = 0

    @property
    def end(self) -> tuple[int, int]:
        """When it ends, or may end at the earliest; its number decides between equal ticks."""
        still = 0 if self.awaited is None else self.reported + 1
        return self.start + len(self.sampled.tokens) + still, self.number

    @property
    def response(self) -> tuple[int, ...]:
        return self.before + self.sampled.tokens


class GrowingTree:
    """A tree, from its first request to its last reward.

    Args:
        key: names the tree; the requests' ids are (key, trajectory number).
        task: its prompt.
        identity: what its seeds derive from.
        strategy: decides where it branches and when it is complete.
        splitter: cuts continuations into steps.
        max_new_tokens: most response tokens of a trajectory.
        version: of the policy that samples from now on; None if versions are not counted.
        sampled: trajectories of this tree that were sampled before, in the order of their numbers.

    Attributes:
        tree: what has been inserted so far.
        clock: the tick up to which it has been grown.
        is_complete: nothing is in flight and nothing will be launched any more.
    """

    def __init__(
        self,
        key: int,
        task: GrowthTask,
        identity: tuple[int | str, ...],
        strategy: BranchingStrategy,
        splitter: Splitter,
        max_new_tokens: int,
        *,
        version: int | None = None,
        sampled: Sequence[Sampled] = (),
    ) -> None:
        self.key = key
        self.tree = Tree(task.prompt_id, task.prompt_tokens, merge=task.merge)
        self.clock = 0
        self.is_complete = False
        self._identity = identity
        self._strategy = strategy
        self._splitter = splitter
        self._max_new_tokens = max_new_tokens
        self._version = version
        self._known = list(sampled)
        self._rng = np.random.default_rng(derive_seed(*identity, "branching"))
        self._launched: list[_Trajectory] = []
        self._running: list[_Trajectory] = []
        self._ended: list[_Trajectory] = []  # and not inserted
        self._rounds = 0
        self._no_more = False
        self._forked = False  # inside a step
        # Of each response that ended; one that is sampled again shares its reward.
        self._rewards: dict[tuple[int, ...], float | None] = {}

    @property
    def awaits_sampler(self) -> bool:
        """Whether a request is not answered."""
        return any(trajectory.awaited is not None for trajectory in self._running)

    def in_the_way(self) -> dict[tuple[int, int], int]:
        """Requests that may still end before a sequence that has ended, and the tokens that show that they do not."""
        ended = min((trajectory.end for trajectory in self._running if trajectory.awaited is None), default=None)
        return {} if ended is None else self._unless_past(*ended)

    def behind(self, tick: int) -> dict[tuple[int, int], int]:
        """Requests that may still end by a tick of this tree, and the tokens that show that they do not."""
        return self._unless_past(tick, len(self._launched))

    def _unless_past(self, tick: int, number: int) -> dict[tuple[int, int], int]:
        """Unanswered requests that may end before trajectory ``number`` at a tick, and the tokens that they lack."""
        return {
            (self.key, one.number): tick - one.start - len(one.sampled.tokens) - (one.number > number)
            for one in self._running
            if one.awaited is not None and one.end < (tick, number)
        }

    @property
    def sampled_tokens(self) -> int:
        """Tokens sampled so far."""
        return sum(len(trajectory.sampled.tokens) for trajectory in self._launched)

    @property
    def awaits_rewards(self) -> bool:
        """Whether a response that ended has no reward yet."""
        return None in self._rewards.values()

    @property
    def earliest(self) -> int:
        """The tick at which something may happen next, at the earliest; of a complete tree, when it was complete."""
        if self._running and not self._is_due:
            return min(trajectory.end for trajectory in self._running)[0]
        return self.clock

    def accept(self, number: int, rollout: Rollout) -> tuple[int, ...] | None:
        """Keep a rollout; the response that is to be scored now, None if its reward is known or awaited."""
        trajectory = self._awaited(number)
        request, before = trajectory.awaited, trajectory.sampled
        assert request is not None
        self._check(number, rollout, request)
        trajectory.awaited = None
        trajectory.sampled = Sampled(
            before.tokens + rollout.tokens,
            before.logprobs + rollout.logprobs,
            before.versions + self._versions(len(rollout.tokens)),
            rollout.finish_reason,
            kept=before.kept + rollout.kept,
        )
        response = trajectory.response
        if response in self._rewards:
            return None
        self._rewards[response] = None
        return response

    def report(self, number: int, count: int) -> None:
        """The sampler has drawn so many tokens for a request of this tree, at least, and goes on with it."""
        trajectory = self._launched[number]
        if trajectory.awaited is not None:
            trajectory.reported = max(trajectory.reported, count)

    def score(self, number: int, reward: float) -> None:
        """Keep the reward of the response that :meth:`accept` of that number asked for."""
        known = isinstance(number, int) and 0 <= number < len(self._launched)
        response = self._launched[number].response if known else ()
        if self._rewards.get(response, 0.0) is not None:
            raise RuntimeError(f"the verifier returned a reward that is not awaited: {(self.key, number)!r}")
        if not 0.0 <= reward <= 1.0:
            raise ValueError(
                f"tree {self.tree.prompt_id!r}: reward {reward} of trajectory {number} is outside [0, 1]"
            )
        self._rewards[response] = float(reward)

    def advance(self) -> list[RolloutRequest]:
        """Grow as far as what is known allows; the requests of what was launched."""
        requests: list[RolloutRequest] = []
        while not self.is_complete:
            if not self._is_due:
                ended = min(self._running, key=lambda trajectory: trajectory.end)
                if ended.awaited is not None:  # it, or another one, may end before all that are known to have ended
                    break
                self._running.remove(ended)
                self._ended.append(ended)
                self.clock = ended.end[0]
            elif any(self._rewards[trajectory.response] is None for trajectory in self._ended):
                break
            else:
                self._insert_ended()
                if self._no_more:
                    self.is_complete = True
                else:
                    requests += self._branch()
        return requests

    def needed(self, tick: int) -> dict[tuple[int, int], int]:
        """Tokens that each unanswered request is to have by a tick, by the request's id."""
        return {
            (self.key, trajectory.number): max(0, tick - trajectory.start - len(trajectory.sampled.tokens))
            for trajectory in self._running
            if trajectory.awaited is not None
        }

    def interrupt(self, number: int, unfinished: Unfinished) -> None:
        """Keep what the sampler had drawn for a request that was cut."""
        trajectory = self._awaited(number)
        before = trajectory.sampled
        trajectory.awaited = None
        trajectory.sampled = Sampled(
            before.tokens + unfinished.tokens,
            before.logprobs + unfinished.logprobs,
            before.versions + self._versions(len(unfinished.tokens)),
        )

    def cut(self, tick: int) -> tuple[Sampled, ...]:
        """What had been sampled of each trajectory at a tick: ``sampled`` of a later :class:`GrowingTree`.

        Args:
            tick: before :attr:`earliest`, or not before that of a complete tree; all that ended by then has its
            reward.
        """
        return tuple(
            self._with_reward(trajectory).first(tick - trajectory.start)
            for trajectory in self._launched
            if trajectory.start <= tick
        )

    @property
    def _is_due(self) -> bool:
        """Whether the next branch is to be chosen now, or, where there is none, the tree to be completed."""
        if self._no_more or (self._rounds and not self.tree.nodes[ROOT].children and not self._ended):
            return not self._running
        return len(self._running) < self._strategy.window

    def _branch(self) -> list[RolloutRequest]:
        """Ask the strategy once, and launch what it says."""
        in_flight = Counter(trajectory.node for trajectory in self._running)
        points = self._strategy.next_round(self.tree, self._rounds, self._rng, in_flight)
        self._rounds += 1
        self._no_more = not points
        self._forked |= any(point.offset is not None for point in points)
        places = [(p.node, p.offset or len(self.tree.nodes[p.node].tokens)) for p in points]
        blank = [(p.node, end) for p in points if p.offset and (end := self._end_inside(p.node, p.offset))]
        nodes = self.tree.split([*places, *blank])[: len(places)]
        launched = [
            self._launch(node) for point, node in zip(points, nodes, strict=True) for _ in range(point.rollouts)
        ]
        return [trajectory.awaited for trajectory in launched if trajectory.awaited is not None]

    def _launch(self, node: int) -> _Trajectory:
        number, before = len(self._launched), self.tree.response_tokens(node)
        room = self._max_new_tokens - len(before)
        if room < 1:
            raise RuntimeError(
                f"tree {self.tree.prompt_id!r}: the strategy branches node {node}, but no token is left below it "
                f"under max_new_tokens={self._max_new_tokens}"
            )
        known = self._known[number] if number < len(self._known) else Sampled()
        trajectory = _Trajectory(number, node, self._rounds - 1, self.clock, before, known)
        if known.finish_reason is not None:
            self._rewards[trajectory.response] = known.reward
        else:
            parts = (*self._identity, number, len(known.tokens)) if known.tokens else (*self._identity, number)
            trajectory.awaited = RolloutRequest(
                (self.key, number),
                self.tree.nodes[ROOT].tokens + trajectory.response,
                room - len(known.tokens),
                derive_seed(*parts),
            )
        self._launched.append(trajectory)
        self._running.append(trajectory)
        return trajectory

    def _insert_ended(self) -> None:
        for trajectory in sorted(self._ended, key=lambda trajectory: trajectory.number):
            sampled = trajectory.sampled
            assert sampled.finish_reason is not None
            ends = self._step_ends(trajectory)
            steps = [(sampled.tokens[start:end], sampled.logprobs[start:end]) for start, end in pairwise([0, *ends])]
            leaf = self.tree.insert(
                trajectory.node,
                steps,
                sampled.finish_reason,
                trajectory.round,
                versions=sampled.versions,
                kept=sampled.kept,
            )
            reward = self._rewards[trajectory.response]
            assert reward is not None
            self.tree.set_reward(leaf, reward)
        self._ended.clear()

    def _step_ends(self, trajectory: _Trajectory) -> list[int]:
        """Where steps end in a continuation: where they would have ended inside the whole response."""
        if not self._forked:  # the continuation begins where a step ended
            return [step.stop for step in self._splitter.split(trajectory.sampled.tokens)]
        done = len(trajectory.before)
        return [step.stop - done for step in self._splitter.split(trajectory.response) if step.stop > done]

    def _end_inside(self, node: int, offset: int) -> int:
        """Where a step ends inside a node before a fork; 0 if none does.

        A last step may hold a blank line and what cannot be seen behind it; a continuation from there tells them
        apart.
        """
        before = self.tree.response_tokens(self.tree.nodes[node].parent)
        end = self._splitter.completed(before + self.tree.nodes[node].tokens[:offset]) - len(before)
        return end if 0 < end < offset else 0

    def _with_reward(self, trajectory: _Trajectory) -> Sampled:
        sampled = trajectory.sampled
        reward = None if sampled.finish_reason is None else self._rewards[trajectory.response]
        return replace(sampled, reward=reward)

    def _versions(self, count: int) -> tuple[int, ...]:
        return () if self._version is None else (self._version,) * count

    def _awaited(self, number: int) -> _Trajectory:
        known = isinstance(number, int) and 0 <= number < len(self._launched)
        if not known or self._launched[number].awaited is None:
            raise RuntimeError(f"the sampler returned a rollout that is not awaited: {(self.key, number)!r}")
        return self._launched[number]

    def _check(self, number: int, rollout: Rollout, request: RolloutRequest) -> None:
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
        if len(rollout.kept) not in (0, len(rollout.tokens)):
            raise RuntimeError(
                f"{where}: the sampler returned {len(rollout.kept)} kept sets for {len(rollout.tokens)} tokens"
            )
        if not math.isfinite(math.fsum(rollout.logprobs)):
            raise RuntimeError(f"{where}: the sampler returned a log-probability that is not finite")


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63), the same in every process (Python's own hash is not)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
