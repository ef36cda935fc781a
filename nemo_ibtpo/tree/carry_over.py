"""Growing more trees than a step trains, until the step closes; unfinished ones go on under the next weights.

A step begins at tick 0 of its clock with as many trees as are to be in flight. All of them advance alike
(:mod:`nemo_ibtpo.tree.growing_tree`). When one is complete the next prompt is started in its place, some ticks later;
at the tick at which the step's number of trees is complete, and with them those that may not get older
(:mod:`nemo_ibtpo.tree.trees_in_flight`), the step closes. Every sequence has then sampled what it had sampled at
that tick, whatever the machine's speed and the number of engines: what an engine drew beyond it is dropped and
counted, and a sequence that is not so far yet is waited for. Hence the trees, the moment of the cut and what is
carried on depend on prompts, weights and seed only.

- Each token knows its log-probability under the policy that sampled it, and that policy's version, counted in
  optimizer steps.
- Complete trees beyond a step's number (ties, or a step that waited for an old tree) come first in the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nemo_ibtpo.tree.branching import BranchingStrategy
from nemo_ibtpo.tree.growing_tree import GrowingTree, GrowthTask
from nemo_ibtpo.tree.growth import IDLE_S, WorkInFlight
from nemo_ibtpo.tree.rollouts import RewardSource, RolloutSource
from nemo_ibtpo.tree.steps import Splitter
from nemo_ibtpo.tree.tree import Tree
from nemo_ibtpo.tree.trees_in_flight import CarriedTree, Closing


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
    """What became of an owner's trees in a step, or of those of all owners.

    Attributes:
        closed: the trees that the step trains, by index, in this order.
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


def merge_steps(steps: Sequence[StepOfTrees]) -> StepOfTrees:
    """What became of the trees of all owners."""
    closed = {index: tree for step in steps for index, tree in step.closed.items()}
    carried = {index: tree for step in steps for index, tree in step.carried.items()}
    return StepOfTrees(
        dict(sorted(closed.items())),
        dict(sorted(carried.items())),
        steps[0].tick,
        sum(step.drawn for step in steps),
        sum(step.dropped for step in steps),
    )


Exchange = Callable[[Horizon], Sequence[Horizon]]


def alone(horizon: Horizon) -> Sequence[Horizon]:
    """The horizons of all owners, where there is one."""
    return [horizon]


def grow_until_closed(
    trees: Mapping[int, CarriedTree],
    tasks: Mapping[str, GrowthTask],
    closing: Closing,
    *,
    source: RolloutSource,
    rewards: RewardSource,
    strategy: BranchingStrategy,
    splitter: Splitter,
    max_new_tokens: int,
    exchange: Exchange = alone,
    exchange_period_s: float = 0.0,
    now: Callable[[], float] = time.monotonic,
    start_delay: int = 0,
    on_turn: Callable[[int], None] | None = None,
    stall_timeout_s: float = 3600.0,
    idle_s: float = IDLE_S,
) -> StepOfTrees:
    """Grow an owner's share of the trees in flight until the step closes.

    Args:
        trees: by their index in the order of the prompts, over all owners; none on a rank without an engine.
        tasks: their prompts, by id.
        closing: the same for all owners.
        source, rewards, strategy, splitter, max_new_tokens, stall_timeout_s, idle_s: see
            :func:`nemo_ibtpo.tree.growth.grow`.
        exchange: what every owner knows, given what this one knows; a collective over the owners. It is called until
            the step closes, by all owners equally often.
        exchange_period_s: shortest time between two calls.
        now: seconds; of another clock where time is simulated.
        start_delay: ticks between the end of a tree and the start of the next one. Until the owners have heard of an
            end, the engines draw on; without a delay each new tree would lag behind by that time, and the step close
            later by the sum of all lags.
        on_turn: called with the number of this owner's complete trees.

    Raises:
        ValueError, RuntimeError: see :func:`nemo_ibtpo.tree.growth.grow`.
    """
    work = WorkInFlight(source, rewards, stall_timeout_s, idle_s, has_window=strategy.window > 1)
    share = _Share(trees, closing, work)

    def start(index: int, tick: int) -> None:
        tree = trees[index]
        identity = (tree.seed, tree.prompt_id, 0)
        growing = GrowingTree(
            index,
            tasks[tree.prompt_id],
            identity,
            strategy,
            splitter,
            max_new_tokens,
            version=closing.version,
            sampled=tree.sampled,
        )
        share.started[index] = share.earliest[index] = tick
        work.add(growing)

    for index in trees:
        if index < closing.in_flight:
            start(index, 0)
    last_exchange = -math.inf
    settled = _Settled({}, 0, math.inf, None)
    while settled.closed is None:
        _, touched = work.turn()
        share.note(touched)
        if on_turn is not None:
            on_turn(len(share.complete))
        if now() - last_exchange < exchange_period_s:
            continue
        unsettled = min(settled.unsettled, share.first_complete(settled.before))
        if exchange is alone and unsettled == math.inf:  # it has nothing new to tell itself
            continue
        share.note(work.take_reports(share.behind(unsettled)))
        settled = _settled(exchange(share.horizon()), closing, start_delay)
        last_exchange = now()
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
        earliest: tick at which something may happen next to each of the others.
    """

    trees: Mapping[int, CarriedTree]
    closing: Closing
    work: WorkInFlight
    started: dict[int, int] = field(default_factory=dict)
    complete: dict[int, int] = field(default_factory=dict)
    earliest: dict[int, int] = field(default_factory=dict)

    def note(self, touched: Sequence[GrowingTree]) -> None:
        """Take down which trees are complete, and how far the others are."""
        for growing in touched:
            index = growing.key
            if not growing.is_complete:
                self.earliest[index] = growing.earliest + self._shift(index)
            elif index not in self.complete:
                self.earliest.pop(index, None)
                self.complete[index] = max(self.started[index], growing.earliest + self._shift(index))

    def first_complete(self, tick: float) -> float:
        """The first tick from this one on at which a tree was complete; infinite if there is none."""
        return min((one for one in self.complete.values() if one >= tick), default=math.inf)

    def behind(self, tick: float) -> dict[int, int]:
        """Trees to which something may happen up to a tick; that tick of their own clocks. None if it is infinite."""
        if tick == math.inf:
            return {}
        return {
            index: int(tick) - self._shift(index) for index, earliest in self.earliest.items() if earliest <= tick
        }

    def horizon(self) -> Horizon:
        """See :class:`Horizon`."""
        return Horizon(
            tuple((tick, index) for index, tick in self.complete.items()),
            min(self.earliest.values(), default=math.inf),
            len(self.started),
        )

    def _shift(self, index: int) -> int:
        """Ticks of the step's clock over those of the tree's."""
        return self.started[index] - self.trees[index].clock


@dataclass(frozen=True, slots=True)
class _Settled:
    """What follows from the horizons of all owners, whatever happens next.

    Attributes:
        starts: the tick at which each further tree is started, by index.
        before: everything before this tick is known.
        unsettled: the first tick at which a tree was complete and that something may still come before; infinite if
            there is none.
        closed: the tick at which the step closes and the trees that it trains; None while that is open.
    """

    starts: Mapping[int, int]
    before: float
    unsettled: float
    closed: tuple[int, set[int]] | None


def _settled(horizons: Sequence[Horizon], closing: Closing, start_delay: int) -> _Settled:
    complete = sorted(entry for horizon in horizons for entry in horizon.complete)
    earliest = min(horizon.earliest for horizon in horizons)
    started = sum(horizon.started for horizon in horizons)
    starts: dict[int, int] = {}
    for index, (tick, _) in enumerate(complete, start=closing.in_flight):
        if tick >= earliest or index >= closing.total:
            break
        starts[index] = tick + start_delay  # the k-th tree to be complete makes room for the k-th that waits
        if index >= started:  # its owner has not started it yet: anything may happen from the next tick on
            earliest = min(earliest, tick + start_delay + 1)
    unsettled = min((tick for tick, _ in complete if tick >= earliest), default=math.inf)
    if len(complete) < closing.trees or not closing.waited_for <= {index for _, index in complete}:
        return _Settled(starts, earliest, unsettled, None)
    tick = max([complete[closing.trees - 1][0], *(tick for tick, index in complete if index in closing.waited_for)])
    if tick >= earliest:
        return _Settled(starts, earliest, unsettled, None)
    by_then = sorted((index not in closing.waited_for, end, index) for end, index in complete if end <= tick)
    return _Settled(starts, earliest, unsettled, (tick, {index for _, _, index in by_then[: closing.trees]}))
