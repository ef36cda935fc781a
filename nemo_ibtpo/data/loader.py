"""The order in which problems are drawn, and a cursor into it that survives a restart.

Invariants (asserted by ``tests/unit/data/test_loader.py``):

- Every epoch draws every problem once, in an order that depends on (seed, epoch) and, at its very beginning,
  on the step that crosses the border into it.
- No batch holds a problem twice, unless there are fewer problems than the batch asks for; nor does a batch with the
  further problems of its step.
- A loader that takes over the state of another one goes on with exactly the batches the other one would have
  drawn.

Hand-rolled: torchdata's samplers know neither the second rule nor a digest of the data, and would bring worker
processes for a list of token ids that is in memory anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.data.problems import Problem, problems_digest


class Prompts(Protocol):
    """Problems in the order in which they are drawn: of one data set or of several (``data.mixture``)."""

    @property
    def digest(self) -> str:
        """SHA-256 of the problems."""

    def __len__(self) -> int: ...
    def next(self, count: int, apart_from: Collection[str] = ()) -> list[Problem]: ...
    def problem(self, problem_id: str) -> Problem: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class PromptLoader:
    """Draws batches of problems, epoch after epoch.

    Args:
        problems: at least one.
        shuffle: another order in each epoch; otherwise the order of ``problems``.
        seed: of the orders.

    Attributes:
        digest: SHA-256 of the problems.
        epoch: the epoch that the next problem is drawn from, unless it was drawn to its end.
    """

    def __init__(self, problems: Sequence[Problem], shuffle: bool, seed: int) -> None:
        if not problems:
            raise ValueError("no problems to draw from")
        self.digest = problems_digest(problems)
        self._problems = list(problems)
        self._by_id = {problem.problem_id: problem for problem in problems}
        self._shuffle = shuffle
        self._seed = seed
        self._start_epoch(0, first=[])

    def __len__(self) -> int:
        """Problems of an epoch."""
        return len(self._problems)

    def count(self, problem_ids: Collection[str]) -> int:
        """How many of these problems there are."""
        return sum(problem.problem_id in problem_ids for problem in self._problems) if problem_ids else 0

    def next(self, count: int, apart_from: Collection[str] = ()) -> list[Problem]:
        """The next ``count`` problems; a batch may cross the border of an epoch.

        Args:
            count: at least 1.
            apart_from: ids of problems that come later in the epoch, if it can be: those already drawn for the step.
        """
        if count < 1:
            raise ValueError(f"a batch needs at least one problem, not {count}")
        self._put_off(apart_from)
        batch: list[int] = []
        while len(batch) < count:
            if self._position == len(self._order):
                self._start_epoch(self.epoch + 1, self._first_after(batch, apart_from, count - len(batch)))
            taken = self._order[self._position : self._position + count - len(batch)]
            self._position += len(taken)
            batch += taken
        return [self._problems[index] for index in batch]

    def __contains__(self, problem_id: str) -> bool:
        """Whether there is such a problem."""
        return problem_id in self._by_id

    def problem(self, problem_id: str) -> Problem:
        """The problem of that id.

        Raises:
            KeyError: there is none of that id.
        """
        return self._by_id[problem_id]

    def state_dict(self) -> dict[str, Any]:
        """The cursor, JSON-able."""
        return {
            "digest": self.digest,
            "shuffle": self._shuffle,
            "seed": self._seed,
            "epoch": self.epoch,
            "position": self._position,
            "first": self._first,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the loader that wrote ``state`` stopped.

        Raises:
            UserError: it drew from other problems or in another order.
        """
        if state["digest"] != self.digest:
            raise UserError(
                f"the checkpoint was written with another training set (digest {state['digest'][:12]}, now "
                f"{self.digest[:12]}); resume with the data set, template and tokenizer of that run"
            )
        for name, mine in (("shuffle", self._shuffle), ("seed", self._seed)):
            if state[name] != mine:
                raise UserError(
                    f"the checkpoint draws its problems with {name}={state[name]}, this run with {name}={mine}; "
                    f"resume with {name}={state[name]}"
                )
        self._start_epoch(state["epoch"], first=list(state["first"]))
        self._position = state["position"]

    def _start_epoch(self, epoch: int, first: list[int]) -> None:
        """Set the order of an epoch: ``first``, then all others as they come."""
        order = self._epoch_order(epoch)
        drawn_first = set(first)
        self.epoch = epoch
        self._first = first
        self._order = first + [index for index in order if index not in drawn_first]
        self._position = 0

    def _put_off(self, problem_ids: Collection[str]) -> None:
        """Move problems that the rest of the epoch would soon draw behind all others of it."""
        rest = self._order[self._position :]
        late = [index for index in rest if self._problems[index].problem_id in problem_ids] if problem_ids else []
        if late:
            chosen = set(late)
            self._order = self._order[: self._position] + [index for index in rest if index not in chosen] + late
            self._first = self._order

    def _first_after(self, batch: list[int], apart_from: Collection[str], missing: int) -> list[int]:
        """Problems that complete a batch at the start of the next epoch without repeating any of its step.

        Fewer than are missing if there are no more such problems.
        """
        drawn = set(batch) | {i for i, problem in enumerate(self._problems) if problem.problem_id in apart_from}
        fresh = (index for index in self._epoch_order(self.epoch + 1) if index not in drawn)
        return list(islice(fresh, missing))

    def _epoch_order(self, epoch: int) -> list[int]:
        if not self._shuffle:
            return list(range(len(self._problems)))
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._problems)).tolist()
