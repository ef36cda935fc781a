"""Several data sets drawn from in proportion to weights, with a cursor that survives a restart.

Each data set has a :class:`PromptLoader` of its own, and so epochs of its own. The data set of a draw is the one that
is furthest behind its share, the first of equals: after n draws each has been drawn from n times its share, to less
than the number of data sets. A data set of which a step has all problems already is passed over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.data.loader import PromptLoader, Prompts
from nemo_ibtpo.data.problems import Problem


def make_prompts(
    parts: Mapping[str, Sequence[Problem]], weights: Mapping[str, float], *, shuffle: bool, seed: int
) -> Prompts:
    """The order in which problems are drawn from one or several data sets.

    Args:
        parts: at least one problem of each data set, by its name.
        weights: of the data sets.
        shuffle, seed: see :class:`PromptLoader`.
    """
    if len(parts) == 1:
        (problems,) = parts.values()
        return PromptLoader(problems, shuffle, seed)
    return PromptMixture({name: PromptLoader(own, shuffle, seed) for name, own in parts.items()}, weights)


class PromptMixture:
    """Draws batches of problems from several loaders.

    Args:
        loaders: by the name of the data set; no problem is in two of them.
        weights: of the data sets, above 0.

    Attributes:
        digest: SHA-256 of the problems of all data sets, and of their names.
    """

    def __init__(self, loaders: Mapping[str, PromptLoader], weights: Mapping[str, float]) -> None:
        self._loaders = dict(loaders)
        self._weights = {name: float(weights[name]) for name in loaders}
        self._drawn = dict.fromkeys(loaders, 0)
        digests = {name: loader.digest for name, loader in loaders.items()}
        self.digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()

    def __len__(self) -> int:
        """Problems of all data sets."""
        return sum(map(len, self._loaders.values()))

    def next(self, count: int, apart_from: Collection[str] = ()) -> list[Problem]:
        """The next ``count`` problems; see :meth:`PromptLoader.next`."""
        if count < 1:
            raise ValueError(f"a batch needs at least one problem, not {count}")
        left = {name: len(loader) - loader.count(apart_from) for name, loader in self._loaders.items()}
        order = []
        for _ in range(count):
            name = self._furthest_behind([name for name, number in left.items() if number > 0] or list(left))
            order.append(name)
            left[name] -= 1
            self._drawn[name] += 1
        drawn = {name: iter(self._loaders[name].next(order.count(name), apart_from)) for name in dict.fromkeys(order)}
        return [next(drawn[name]) for name in order]

    def problem(self, problem_id: str) -> Problem:
        """See :meth:`PromptLoader.problem`."""
        return next(own for own in self._loaders.values() if problem_id in own).problem(problem_id)

    def state_dict(self) -> dict[str, Any]:
        """The cursor, JSON-able."""
        return {
            "digest": self.digest,
            "weights": self._weights,
            "drawn": dict(self._drawn),
            "loaders": {name: loader.state_dict() for name, loader in self._loaders.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the mixture that wrote ``state`` stopped.

        Raises:
            UserError: it drew from other problems, by other weights or in another order.
        """
        if state.get("weights") != self._weights:
            raise UserError(
                f"the checkpoint draws its problems by the weights {state.get('weights')}, this run by "
                f"{self._weights}; resume with those of the checkpoint (data.mixture)"
            )
        for name, loader in self._loaders.items():
            loader.load_state_dict(state["loaders"][name])
        self._drawn = dict(state["drawn"])

    def _furthest_behind(self, names: Sequence[str]) -> str:
        total, drawn = sum(self._weights.values()), sum(self._drawn.values())
        behind = {name: self._weights[name] * (drawn + 1) / total - self._drawn[name] for name in names}
        return max(behind, key=lambda name: behind[name])  # the first of equals
