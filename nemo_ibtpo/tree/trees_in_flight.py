"""The trees of a run between two steps: which of them a step grows and has to train, and how they are saved.

More trees grow than a step trains, and unfinished ones go on under new weights (:mod:`nemo_ibtpo.tree.carry_over`).
With N trees trained in a step and F in flight, F + N - 1 trees are known when a step begins: so many can be started
in it, since each of the first N - 1 that are complete makes room for another. F - 1 are left when it closes.

A tree that would be too old in a later step is trained in this one, which closes later for it if need be: no tree is
dropped, and none is trained twice. With U optimizer steps a step and a largest lag of M, a tree can wait for M // U
steps after the one that started it. All F - 1 that are left may be of that step, so that all of them can be trained
in time if and only if F - 1 <= N * (M // U).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from nemo_ibtpo.tree.growing_tree import Sampled


@dataclass(frozen=True, slots=True)
class CarriedTree:
    """A tree between two steps: growing it again from its trajectories leads to the same state.

    Attributes:
        prompt_id: of its prompt.
        seed: of the step that its prompt was drawn in.
        version: of the policy that sampled its first token, counted in optimizer steps.
        clock: the tick up to which it has been grown.
        sampled: its trajectories in the order of their numbers.
    """

    prompt_id: str
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


class TreesInFlight:
    """All trees between two steps, the same on every rank.

    Args:
        trees_per_step: trees that a step trains.
        in_flight: trees that grow at once.
        max_policy_lag: most optimizer steps between the policy that sampled a token and the one that a step begins
            to train with it.
        updates_per_step: optimizer steps of a training step.

    Raises:
        ValueError: not all of them could be trained within the lag.

    Attributes:
        trees: in the order of their prompts; the last ones may not have been started.
    """

    def __init__(self, trees_per_step: int, in_flight: int, max_policy_lag: int, updates_per_step: int) -> None:
        if max_policy_lag < (least := least_policy_lag(trees_per_step, in_flight, updates_per_step)):
            raise ValueError(f"{in_flight} trees in flight need a policy lag of {least}, not {max_policy_lag}")
        self.trees: tuple[CarriedTree, ...] = ()
        self._per_step = trees_per_step
        self._in_flight = in_flight
        self._max_lag = max_policy_lag
        self._updates = updates_per_step

    @property
    def missing(self) -> int:
        """Prompts to be drawn for the next step: as many trees follow those in flight as can be started in it."""
        return max(0, most_trees_known(self._per_step, self._in_flight) - len(self.trees))

    def begin(self, prompt_ids: Sequence[str], seed: int, version: int) -> Closing:
        """Add trees for new prompts, as many as are ``missing``; how the step goes.

        Args:
            prompt_ids: of different prompts.
            seed: of this step.
            version: of the policy: optimizer steps so far.
        """
        known = [tree if tree.tokens else replace(tree, version=version) for tree in self.trees]
        self.trees = (*known, *(CarriedTree(prompt_id, seed, version) for prompt_id in prompt_ids))
        return Closing(self._in_flight, self._per_step, version, len(self.trees), self._urgent(version))

    def end(self, carried: Mapping[int, CarriedTree]) -> None:
        """Keep what a step did not train: trees of all owners by their indices, in this order."""
        self.trees = tuple(carried.values())

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


def most_trees_known(trees_per_step: int, in_flight: int) -> int:
    """Trees that may be started by the end of a step; see the module."""
    return in_flight + trees_per_step - 1


def least_policy_lag(trees_per_step: int, in_flight: int, updates_per_step: int) -> int:
    """The smallest lag within which all trees can be trained; see the module."""
    return updates_per_step * -(-(in_flight - 1) // trees_per_step)


def write_trees(path: Path, trees: Sequence[CarriedTree]) -> None:
    """Write trees to a safetensors file: tokens as arrays, all else as JSON in its metadata."""
    described = [
        {
            "prompt_id": tree.prompt_id,
            "seed": tree.seed,
            "version": tree.version,
            "clock": tree.clock,
            "trajectories": [[len(one.tokens), one.finish_reason, one.reward] for one in tree.sampled],
        }
        for tree in trees
    ]
    sampled = [one for tree in trees for one in tree.sampled]
    arrays = {
        "tokens": _flat((one.tokens for one in sampled), np.int64),
        "logprobs": _flat((one.logprobs for one in sampled), np.float64),
        "versions": _flat((one.versions for one in sampled), np.int64),
    }
    save_file(arrays, path, metadata={"trees": json.dumps(described)})


def read_trees(path: Path) -> tuple[CarriedTree, ...]:
    """The trees that :func:`write_trees` wrote, bit for bit.

    Raises:
        ValueError: descriptions and arrays do not fit each other.
    """
    with safe_open(path, framework="numpy") as file:
        described = json.loads(file.metadata()["trees"])
        lengths = [length for tree in described for length, _, _ in tree["trajectories"]]
        columns = [_pieces(file.get_tensor(name), lengths) for name in ("tokens", "logprobs", "versions")]
    pieces = iter(zip(*columns, strict=True))
    return tuple(
        CarriedTree(
            tree["prompt_id"],
            tree["seed"],
            tree["version"],
            tree["clock"],
            tuple(Sampled(*(*next(pieces), reason, reward)) for _, reason, reward in tree["trajectories"]),
        )
        for tree in described
    )


def _flat(parts: Iterable[Sequence[float]], dtype: type) -> NDArray[Any]:
    return np.array([value for part in parts for value in part], dtype=dtype)


def _pieces(flat: NDArray[Any], lengths: Sequence[int]) -> list[tuple[Any, ...]]:
    if len(flat) != sum(lengths):
        raise ValueError(f"{len(flat)} values for trees of {sum(lengths)}")
    return [tuple(flat[start:end].tolist()) for start, end in pairwise(accumulate(lengths, initial=0))]
