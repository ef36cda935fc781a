"""Trees that outlive a training step: more grow than a step trains, and unfinished ones go on under new weights.

A step begins at tick 0 of its clock with as many trees as are to be in flight. All of them advance alike
(:mod:`nemo_ibtpo.tree.growing_tree`). At the tick at which one is complete the next prompt is started in its place;
at the tick at which the step's number of trees is complete the step closes. Every sequence has then sampled what it
had sampled at that tick, whatever the machine's speed and the number of engines: what an engine drew beyond it is
dropped and counted, and a sequence that is not so far yet is waited for. Hence the trees, the moment of the cut and
what is
carried on depend on prompts, weights and seed only.

- A tree's trajectories up to the cut are all that is kept of it; growing it again from them leads to the same state.
- Each token knows its log-probability under the policy that sampled it, and that policy's version, counted in
  optimizer steps.
- A tree that would be trained with a larger lag than allowed in a later step is trained in this one, which closes
  later for it if need be. No tree is dropped, and none is trained twice.
- Complete trees beyond a step's number (ties, or a step that waited for an old tree) come first in the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_ibtpo.tree.branching import BranchingStrategy
from nemo_ibtpo.tree.growing_tree import GrowingTree, GrowthTask, Sampled
from nemo_ibtpo.tree.growth import WorkInFlight
from nemo_ibtpo.tree.rollouts import RewardSource, RolloutSource
from nemo_ibtpo.tree.steps import Splitter
from nemo_ibtpo.tree.tree import Tree


@dataclass(frozen=True, slots=True)
class CarriedTree:
    """A tree between two steps.

    Attributes:
        task: its prompt.
        seed: of the step that it was started in.
        version: of the policy that sampled its first token.
        clock: the tick up to which it has been grown.
        sampled: its trajectories in the order of their numbers.
    """

    task: GrowthTask
    seed: int
    version: int
    clock: int = 0
    sampled: tuple[Sampled, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens sampled so far."""
        return sum(len(sampled.tokens) for sampled in self.sampled)


@dataclass(frozen=True, slots=True)
class Closing:
    """How many trees are in flight in a step, and when it closes.

    Attributes:
        in_flight: trees that grow at once.
        trees: trees that the step trains.
        version: of the policy that samples in this step.
        total: trees of all owners, those that wait to be started included.
        waited_for: indices of trees without which the step does not close.
    """

    in_flight: int
    trees: int
    version: int
    total: int
    waited_for: frozenset[int]


@dataclass(frozen=True, slots=True)
class Horizon:
    """What one owner of an engine knows of a step.

    Attributes:
        complete: (tick, index) of each complete tree, tick 0 for one of former steps.
        earliest: the next tick at which something may happen to another started tree; infinite if there is none.
        started: its trees that have been started.
    """

    complete: tuple[tuple[int, int], ...]
    earliest: float
    started: int


@dataclass(frozen=True, slots=True)
class StepOfTrees:
    """What became of an owner's trees in a step.

    Attributes:
        closed: the trees that the step trains, by index.
        carried: all others.
        tick: when the step closed.
        drawn: tokens that the engine drew in this step.
        dropped: those of them that lie beyond the cut.
    """

    closed: Mapping[int, Tree]
    carried: Mapping[int, CarriedTree]
    tick: int
    drawn: int
    dropped: int


Exchange = Callable[[Horizon], Sequence[Horizon]]


def alone(horizon: Horizon) -> Sequence[Horizon]:
    """The horizons of all owners, where there is one."""
    return [horizon]


def grow_until_closed(
    trees: Mapping[int, CarriedTree],
    closing: Closing,
    *,
    source: RolloutSource,
    rewards: RewardSource,
    strategy: BranchingStrategy,
    splitter: Splitter,
    max_new_tokens: int,
    exchange: Exchange = alone,
    exchange_period_s: float = 0.0,
    on_turn: Callable[[int], None] | None = None,
    stall_timeout_s: float = 3600.0,
) -> StepOfTrees:
    """Grow an owner's share of the trees in flight until the step closes.

    Args:
        trees: by their index in the order of the prompts, over all owners.
        closing: the same for all owners.
        source, rewards, strategy, splitter, max_new_tokens, stall_timeout_s: see :func:`nemo_ibtpo.tree.growth.grow`.
        exchange: what every owner knows, given what this one knows; a collective over the owners. It is called until
            the step closes, by all owners equally often.
        exchange_period_s: shortest time between two calls.
        on_turn: called with the number of this owner's complete trees.

    Raises:
        ValueError, RuntimeError: see :func:`nemo_ibtpo.tree.growth.grow`.
    """
    work = WorkInFlight(source, rewards, stall_timeout_s, has_window=strategy.window > 1)
    share = _Share(trees, closing, work)

    def start(index: int, tick: int) -> None:
        tree = trees[index]
        identity = (tree.seed, tree.task.prompt_id, 0)
        growing = GrowingTree(
            index,
            tree.task,
            identity,
            strategy,
            splitter,
            max_new_tokens,
            version=closing.version,
            sampled=tree.sampled,
        )
        share.started[index] = tick
        work.add(growing)

    for index in trees:
        if index < closing.in_flight:
            start(index, 0)
    last_exchange = -math.inf
    closed: tuple[int, set[int]] | None = None
    while closed is None:
        _, touched = work.turn()
        if on_turn is not None:
            on_turn(sum(growing.is_complete for growing in work.growing.values()))
        share.note(touched)
        if exchange is alone and not share.unsettled:  # it has nothing new to tell itself
            continue
        if time.monotonic() - last_exchange < exchange_period_s:
            continue
        work.take_reports(share.behind(math.inf if exchange is not alone else min(share.unsettled.values())))
        settled = _settled(exchange(share.horizon()), closing)
        last_exchange = time.monotonic()
        share.settle(settled)
        for index, tick in settled.starts.items():
            if index in trees and index not in share.started:
                start(index, tick)
        closed = settled.closed
    tick, trained = closed
    cut_at = {index: trees[index].clock + tick - began for index, began in share.started.items()}
    work.cut(cut_at)
    carried = {}
    for index, tree in trees.items():
        if index not in trained:
            carried[index] = _carried(tree, work.growing.get(index), cut_at.get(index, 0))
    before = sum(tree.tokens for tree in trees.values())
    kept = sum(tree.tokens for tree in carried.values())
    kept += sum(work.growing[index].sampled_tokens for index in trees if index in trained)
    return StepOfTrees(
        {index: work.growing[index].tree for index in trees if index in trained},
        carried,
        tick,
        work.sampled_tokens,
        work.sampled_tokens - (kept - before),
    )


def _carried(tree: CarriedTree, growing: GrowingTree | None, tick: int) -> CarriedTree:
    """A tree as it was at a tick of its own clock; as before it was started if it had sampled nothing by then."""
    if growing is None or tick <= 0:
        return tree
    return replace(tree, clock=tick, sampled=growing.cut(tick))


@dataclass(slots=True)
class _Share:
    """An owner's trees in a step.

    Attributes:
        started: tick at which each was started.
        complete: tick at which each was complete.
        unsettled: those of them that something may still come before, or that may close the step.
    """

    trees: Mapping[int, CarriedTree]
    closing: Closing
    work: WorkInFlight
    started: dict[int, int] = field(default_factory=dict)
    complete: dict[int, int] = field(default_factory=dict)
    unsettled: dict[int, int] = field(default_factory=dict)

    def note(self, touched: Sequence[GrowingTree]) -> None:
        """Take down which trees are complete."""
        for growing in touched:
            if growing.is_complete and growing.key not in self.complete:
                tick = max(self.started[growing.key], self._tick(growing))
                self.complete[growing.key] = self.unsettled[growing.key] = tick

    def behind(self, tick: float) -> list[GrowingTree]:
        """Trees to which something may happen up to a tick."""
        growing = (one for one in self.work.growing.values() if one.key not in self.complete)
        return [one for one in growing if self._tick(one) <= tick]

    def horizon(self) -> Horizon:
        """See :class:`Horizon`."""
        open_trees = (one for one in self.work.growing.values() if one.key not in self.complete)
        return Horizon(
            tuple((tick, index) for index, tick in self.complete.items()),
            min(map(self._tick, open_trees), default=math.inf),
            len(self.started),
        )

    def settle(self, settled: _Settled) -> None:
        """Take down what nothing can come before any more."""
        if len(self.complete) < self.closing.trees:  # else each of them may be the one that the step closes with
            self.unsettled = {index: tick for index, tick in self.unsettled.items() if tick >= settled.before}

    def _tick(self, growing: GrowingTree) -> int:
        return growing.earliest - self.trees[growing.key].clock + self.started[growing.key]


@dataclass(frozen=True, slots=True)
class _Settled:
    """What follows from the horizons of all owners, whatever happens next.

    Attributes:
        starts: the tick at which each further tree is started, by index.
        before: everything before this tick is known.
        closed: the tick at which the step closes and the trees that it trains; None while that is open.
    """

    starts: Mapping[int, int]
    before: float
    closed: tuple[int, set[int]] | None


def _settled(horizons: Sequence[Horizon], closing: Closing) -> _Settled:
    complete = sorted(entry for horizon in horizons for entry in horizon.complete)
    earliest = min(horizon.earliest for horizon in horizons)
    started = sum(horizon.started for horizon in horizons)
    starts: dict[int, int] = {}
    for index, (tick, _) in enumerate(complete, start=closing.in_flight):
        if tick >= earliest or index >= closing.total:
            break
        starts[index] = tick  # the k-th tree to be complete makes room for the k-th that waits
        if index >= started:  # its owner has not started it yet: anything may happen from the next tick on
            earliest = min(earliest, tick + 1)
    if len(complete) < closing.trees or not closing.waited_for <= {index for _, index in complete}:
        return _Settled(starts, earliest, None)
    tick = max([complete[closing.trees - 1][0], *(tick for tick, index in complete if index in closing.waited_for)])
    if tick >= earliest:
        return _Settled(starts, earliest, None)
    by_then = sorted((index not in closing.waited_for, end, index) for end, index in complete if end <= tick)
    return _Settled(starts, earliest, (tick, {index for _, _, index in by_then[: closing.trees]}))


class TreesInFlight:
    """All trees between two steps, the same on every rank.

    Args:
        trees_per_step: trees that a step trains.
        carry_over: trees in flight beyond them, as a share.
        max_policy_lag: most optimizer steps between the sampling of a token and the step that trains it.
        updates_per_step: optimizer steps of a training step.

    Raises:
        ValueError: more trees would be in flight than can be trained within the lag.

    Attributes:
        trees: in the order of their prompts; the last ones may not have been started.
    """

    def __init__(self, trees_per_step: int, carry_over: float, max_policy_lag: int, updates_per_step: int) -> None:
        if 1 + carry_over > max_policy_lag // updates_per_step:
            raise ValueError(
                f"{1 + carry_over:g} steps of trees in flight cannot be trained within {max_policy_lag} updates of "
                f"{updates_per_step} a step"
            )
        self.trees: list[CarriedTree] = []
        self._per_step = trees_per_step
        self._in_flight = trees_per_step + math.ceil(carry_over * trees_per_step)
        self._max_lag = max_policy_lag
        self._updates = updates_per_step

    @property
    def missing(self) -> int:
        """Prompts to be drawn for the next step: as many trees follow those in flight as can be started in it."""
        return self._in_flight + self._per_step - 1 - len(self.trees)

    def begin(self, tasks: Sequence[GrowthTask], seed: int, version: int) -> Closing:
        """Add trees for new prompts, as many as are ``missing``; how the step goes.

        Args:
            tasks: prompts that are not in flight.
            seed: of this step.
            version: of the policy: optimizer steps so far.
        """
        known = [tree if tree.tokens else replace(tree, version=version) for tree in self.trees]
        self.trees = known + [CarriedTree(task, seed, version) for task in tasks]
        return Closing(self._in_flight, self._per_step, version, len(self.trees), self._urgent(version))

    def _urgent(self, version: int) -> frozenset[int]:
        """The oldest trees, as many as have to be trained now so that none is too old later.

        Of those that can be trained in the k steps after this one at the latest, k steps train as many as they can.
        """
        order = sorted(
            ((tree.version + self._max_lag - version) // self._updates, index)
            for index, tree in enumerate(self.trees)
            if tree.tokens
        )
        needed = 0
        for position, (steps_left, _) in enumerate(order, start=1):
            needed = max(needed, position - steps_left * self._per_step)
        return frozenset(index for _, index in order[: min(needed, self._per_step)])

    def end(self, steps: Sequence[StepOfTrees]) -> list[Tree]:
        """Keep what is carried, and return the trees to train in the order of their prompts.

        Args:
            steps: of all owners.
        """
        closed = {index: tree for step in steps for index, tree in step.closed.items()}
        carried = {index: tree for step in steps for index, tree in step.carried.items()}
        self.trees = [carried[index] for index in sorted(carried)]
        return [closed[index] for index in sorted(closed)]

    def state_dict(self) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
        """A JSON-able description of each tree, and the tokens of all trees as arrays."""
        trees = [
            {
                "prompt_id": tree.task.prompt_id,
                "seed": tree.seed,
                "version": tree.version,
                "clock": tree.clock,
                "prompt_tokens": len(tree.task.prompt_tokens),
                "trajectories": [[len(s.tokens), s.finish_reason, s.reward] for s in tree.sampled],
            }
            for tree in self.trees
        ]
        sampled = [one for tree in self.trees for one in tree.sampled]
        return trees, {
            "prompt_tokens": _flat((tree.task.prompt_tokens for tree in self.trees), np.int64),
            "tokens": _flat((one.tokens for one in sampled), np.int64),
            "logprobs": _flat((one.logprobs for one in sampled), np.float64),
            "versions": _flat((one.versions for one in sampled), np.int64),
        }

    def load_state_dict(self, trees: Sequence[Mapping[str, Any]], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what :meth:`state_dict` described.

        Raises:
            ValueError: description and arrays do not fit each other.
        """
        prompts = _pieces(arrays["prompt_tokens"], [tree["prompt_tokens"] for tree in trees])
        lengths = [length for tree in trees for length, _, _ in tree["trajectories"]]
        columns = [_pieces(arrays[name], lengths) for name in ("tokens", "logprobs", "versions")]
        pieces = iter(zip(*columns, strict=True))
        self.trees = [
            CarriedTree(
                GrowthTask(tree["prompt_id"], prompt),
                tree["seed"],
                tree["version"],
                tree["clock"],
                tuple(Sampled(*(*next(pieces), reason, reward)) for _, reason, reward in tree["trajectories"]),
            )
            for tree, prompt in zip(trees, prompts, strict=True)
        ]


def _flat(parts: Any, dtype: type) -> NDArray[Any]:
    return np.array([value for part in parts for value in part], dtype=dtype)


def _pieces(flat: NDArray[Any], lengths: Sequence[int]) -> list[tuple[Any, ...]]:
    if len(flat) != sum(lengths):
        raise ValueError(f"{len(flat)} values for trees of {sum(lengths)}")
    return [tuple(flat[start:end].tolist()) for start, end in pairwise(accumulate(lengths, initial=0))]
