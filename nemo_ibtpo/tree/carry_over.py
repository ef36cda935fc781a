"""Trees that outlive a training step: more are in flight than a step trains, and unfinished ones go on under new
weights.

A step begins with all of its trees at tick 0 of its clock. They advance alike (:mod:`nemo_ibtpo.tree.growing_tree`),
and the step closes at the tick at which its number of trees is complete. Every sequence has then sampled what it had
sampled at that tick, whatever the machine's speed and the number of engines: what an engine drew beyond it is dropped
and counted, and a sequence that is not so far yet is waited for. Hence the trees, the moment of the cut and what is
carried on depend on prompts, weights and seed only.

- A tree's trajectories up to the cut are all that is kept of it; growing it again from them leads to the same state.
- Each token knows the version of the policy that sampled it, counted in optimizer steps, and its log-probability
  there.
- A tree that would be trained with a larger lag than allowed in the next step is trained in this one, which closes
  later for it if need be. No tree is dropped, and none is trained twice.
- Complete trees beyond a step's number (ties, or a step that waited for an old tree) come first in the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    """When a step closes, and with which trees.

    Attributes:
        trees: trees that a step trains.
        version: of the policy that samples in this step.
        oldest: version from which on a tree may be left for the next step.
    """

    trees: int
    version: int
    oldest: int

    def waits_for(self, tree: CarriedTree) -> bool:
        """Whether the step does not close without this tree."""
        return tree.version < self.oldest


@dataclass(frozen=True, slots=True)
class Horizon:
    """What one owner of an engine knows of a step.

    Attributes:
        complete: (whether the step waits for it, tick, index) of each complete tree, a tree of former steps at tick
        0. earliest: the next tick at which something may happen to another tree; infinite if there is none. missing:
        trees that the step waits for and that are not complete.
    """

    complete: tuple[tuple[bool, int, int], ...]
    earliest: float
    missing: int


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
    for index, tree in trees.items():
        work.add(
            GrowingTree(
                index,
                tree.task,
                (tree.seed, tree.task.prompt_id, 0),
                strategy,
                splitter,
                max_new_tokens,
                version=closing.version,
                sampled=tree.sampled,
            )
        )
    last_exchange = -math.inf
    while True:
        work.turn()
        complete = sum(growing.is_complete for growing in work.growing.values())
        if on_turn is not None:
            on_turn(complete)
        may_close = exchange is not alone or complete >= closing.trees
        if may_close and time.monotonic() - last_exchange >= exchange_period_s:
            work.take_all_reports()
            horizons = exchange(_horizon(work, trees, closing))
            last_exchange = time.monotonic()
            if (closed := _closed(horizons, closing)) is not None:
                tick, indices = closed
                break
    cut_at = {index: tree.clock + tick for index, tree in trees.items()}
    work.cut(cut_at)
    growing = work.growing
    carried = {
        index: CarriedTree(tree.task, tree.seed, tree.version, cut_at[index], growing[index].cut(cut_at[index]))
        for index, tree in trees.items()
        if index not in indices
    }
    before = sum(tree.tokens for tree in trees.values())
    kept = sum(tree.tokens for tree in carried.values())
    kept += sum(growing[index].sampled_tokens for index in trees if index in indices)
    return StepOfTrees(
        {index: growing[index].tree for index in trees if index in indices},
        carried,
        tick,
        work.sampled_tokens,
        work.sampled_tokens - (kept - before),
    )


def _horizon(work: WorkInFlight, trees: Mapping[int, CarriedTree], closing: Closing) -> Horizon:
    complete, earliest, missing = [], math.inf, 0
    for index, growing in work.growing.items():
        tick = growing.earliest - trees[index].clock
        must = closing.waits_for(trees[index])
        if growing.is_complete:
            complete.append((must, max(0, tick), index))
        else:
            earliest = min(earliest, tick)
            missing += must
    return Horizon(tuple(complete), earliest, missing)


def _closed(horizons: Sequence[Horizon], closing: Closing) -> tuple[int, set[int]] | None:
    """The tick at which the step closes and the trees that it trains; None while that is not known."""
    complete = sorted((not must, tick, index) for horizon in horizons for must, tick, index in horizon.complete)
    if any(horizon.missing for horizon in horizons) or len(complete) < closing.trees:
        return None
    enough = sorted(tick for _, tick, _ in complete)[closing.trees - 1]
    tick = max([enough, *(tick for others, tick, _ in complete if not others)])
    if min(horizon.earliest for horizon in horizons) <= tick:
        return None
    by_then = [index for _, end, index in complete if end <= tick]
    return tick, set(by_then[: closing.trees])


class TreesInFlight:
    """All trees between two steps, the same on every rank.

    Args:
        trees_per_step: trees that a step trains.
        carry_over: trees in flight beyond them, as a share.
        max_policy_lag: most optimizer steps between the sampling of a token and its training.
        updates_per_step: optimizer steps of a training step.

    Attributes:
        trees: in the order of their prompts.
    """

    def __init__(self, trees_per_step: int, carry_over: float, max_policy_lag: int, updates_per_step: int) -> None:
        self.trees: list[CarriedTree] = []
        self._per_step = trees_per_step
        self._in_flight = trees_per_step + math.ceil(carry_over * trees_per_step)
        self._max_lag = max_policy_lag
        self._updates = updates_per_step

    @property
    def missing(self) -> int:
        """Prompts to be started in the next step."""
        return self._in_flight - len(self.trees)

    def begin(self, tasks: Sequence[GrowthTask], seed: int, version: int) -> Closing:
        """Start trees for new prompts, as many as are ``missing``; how the step closes.

        Args:
            tasks: prompts that are not in flight.
            seed: of this step.
            version: of the policy: optimizer steps so far.
        """
        self.trees += [CarriedTree(task, seed, version) for task in tasks]
        return Closing(self._per_step, version, oldest=version + self._updates - self._max_lag)

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
                tuple(Sampled(*next(pieces), reason, reward) for _, reason, reward in tree["trajectories"]),
            )
            for tree, prompt in zip(trees, prompts, strict=True)
        ]


def _flat(parts: Any, dtype: type) -> NDArray[Any]:
    return np.array([value for part in parts for value in part], dtype=dtype)


def _pieces(flat: NDArray[Any], lengths: Sequence[int]) -> list[tuple[Any, ...]]:
    if len(flat) != sum(lengths):
        raise ValueError(f"{len(flat)} values for trees of {sum(lengths)}")
    return [tuple(flat[start:end].tolist()) for start, end in pairwise(accumulate(lengths, initial=0))]
