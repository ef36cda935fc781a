"""Seconds of sampling a step: trees grown in outline on simulated engines.

The engines are those of :mod:`nemo_ibtpo.planning.simulated_engine`, on which ``benchmarks/sampling_at_scale.py``
grows real trees. Trees in outline have no scores and no rewards: a branch goes on behind a uniform share of some
response that has ended, in rounds or as soon as fewer sequences than the window are in flight. With trees carried
over a step closes when its number of trees is complete, and the others go on.

Declared: at most eight engines are simulated, and at most ``_MOST_TREES`` trees each; more trees take longer in
proportion. Seconds are the mean of some steps.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count

from nemo_ibtpo.planning.engine_model import EngineModel
from nemo_ibtpo.planning.response_lengths import ResponseLengths, length_in_quanta
from nemo_ibtpo.planning.simulated_engine import SimulatedEngines
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest

_QUANTA = 64  # that the longest response is counted in
_MOST_ENGINES = 8
_MOST_TREES = 256
_STEPS = 2  # that are measured
_STEPS_BEFORE = 2  # with trees carried over, to get going


@dataclass(frozen=True)
class TreeShape:
    """How a tree grows.

    Attributes:
        initial: responses from the prompt.
        branches: continuations that follow.
        per_round: continuations of a round, which begins when all of the last one have ended.
        window: sequences kept in flight instead; None in rounds.
    """

    initial: int
    branches: int
    per_round: int
    window: int | None


@lru_cache(maxsize=4096)
def sampling_seconds(
    engine: EngineModel,
    engines: int,
    trees: int,
    in_flight: int,
    shape: TreeShape,
    lengths: ResponseLengths,
    prompt: float,
    *,
    carried: bool,
) -> float:
    """Seconds of sampling the trees of a step.

    Args:
        engine: each of them.
        engines: how many there are.
        trees: of a step, on each engine.
        in_flight: trees that grow at once, on each engine; with ``carried`` more than ``trees``.
        shape: of each tree.
        lengths: of responses.
        prompt: mean tokens of a prompt.
        carried: whether unfinished trees go on in the next step.
    """
    if trees > _MOST_TREES:
        half = _MOST_TREES // 2
        more = round(in_flight * _MOST_TREES / trees) if carried else in_flight
        both = [
            sampling_seconds(
                engine,
                engines,
                some,
                more * some // _MOST_TREES if carried else more,
                shape,
                lengths,
                prompt,
                carried=carried,
            )
            for some in (half, _MOST_TREES)
        ]
        return both[1] + (trees - _MOST_TREES) / half * (both[1] - both[0])
    simulated = max(1, min(engines, _MOST_ENGINES, 2 * _MOST_TREES // trees))
    quantum = -(-lengths.cap // _QUANTA)
    prompt_quanta = max(1, round(prompt / quantum))
    room = (prompt_quanta + _QUANTA + 1) * quantum  # an engine holds one sequence at least
    engine = replace(engine, cache_tokens=max(engine.cache_tokens, room))
    source = SimulatedEngines(engine, simulated, length_in_quanta(lengths, prompt_quanta, quantum), quantum)
    growth = _Outline(source, shape, prompt_quanta, -(-lengths.cap // quantum))
    if carried:
        return growth.carried_steps(trees * simulated, in_flight * simulated)
    return growth.whole_steps(trees, simulated, in_flight)


@dataclass(slots=True)
class _Tree:
    prompt: tuple[int, ...]
    rng: random.Random
    left: int
    launched: int = 0
    ended: list[tuple[int, ...]] = field(default_factory=list)
    running: dict[int, RolloutRequest] = field(default_factory=dict)


class _Outline:
    """Trees that know lengths only."""

    def __init__(self, source: SimulatedEngines, shape: TreeShape, prompt: int, longest: int) -> None:
        self._source = source
        self._shape = shape
        self._prompt = prompt
        self._longest = longest
        self._trees: dict[int, _Tree] = {}

    def whole_steps(self, trees: int, engines: int, in_flight: int) -> float:
        """Mean seconds of steps that begin and complete so many trees on each engine."""
        for step in range(_STEPS):
            first = step * trees * engines
            waiting = [deque(range(first + engine, first + trees * engines, engines)) for engine in range(engines)]
            for own in waiting:
                for _ in range(min(in_flight, trees)):
                    self._start(own.popleft())
            while self._trees:
                for key in self._complete():
                    if own := waiting[key % engines]:
                        self._start(own.popleft())
            self._source.synchronize()
        return self._source.now / _STEPS

    def carried_steps(self, trees: int, in_flight: int) -> float:
        """Mean seconds of steps that close when so many trees are complete, with more in flight."""
        keys: Iterator[int] = count()
        for _ in range(in_flight):
            self._start(next(keys))
        complete, began = 0, 0.0
        for step in range(_STEPS_BEFORE + _STEPS):
            if step == _STEPS_BEFORE:
                began = self._source.now
            while complete < trees:
                for _ in self._complete():
                    complete += 1
                    self._start(next(keys))
            complete -= trees
            self._go_on()
        return (self._source.now - began) / _STEPS

    def _start(self, key: int) -> None:
        prompt = tuple(range(-(key + 1) * self._prompt, -key * self._prompt))
        tree = self._trees[key] = _Tree(prompt, random.Random(key), self._shape.branches)
        self._launch(key, tree, [prompt] * self._shape.initial)

    def _complete(self) -> list[int]:
        """Let engines work a little; the trees that are complete now."""
        complete = []
        for rollout in self._source.poll():
            key, tree = self._end(rollout)
            if self._shape.window is not None:
                due = min(tree.left, max(0, self._shape.window - len(tree.running)))
            else:
                due = 0 if tree.running else min(tree.left, self._shape.per_round)
            tree.left -= due
            self._launch(key, tree, [self._branch(tree) for _ in range(due)])
            if not tree.running:
                del self._trees[key]
                complete.append(key)
        return complete

    def _end(self, rollout: Rollout) -> tuple[int, _Tree]:
        assert isinstance(rollout.request_id, tuple)
        key, number = rollout.request_id
        tree = self._trees[key]
        tree.ended.append(tree.running.pop(number).prefix + rollout.tokens)
        return key, tree

    def _branch(self, tree: _Tree) -> tuple[int, ...]:
        """A response that has ended, up to some place."""
        path = tree.rng.choice(tree.ended)
        return path[: tree.rng.randrange(self._prompt, len(path))]

    def _launch(self, key: int, tree: _Tree, prefixes: list[tuple[int, ...]]) -> None:
        requests = []
        for prefix in prefixes:
            room = max(1, self._longest + self._prompt - len(prefix))
            seed = tree.rng.getrandbits(63)
            requests.append(RolloutRequest((key, tree.launched), prefix, room, seed))
            tree.running[tree.launched] = requests[-1]
            tree.launched += 1
        self._source.submit(requests)

    def _go_on(self) -> None:
        """Under new weights, from what has been sampled."""
        cut = self._source.cut({})
        self._source.synchronize()
        for unfinished in cut:
            assert isinstance(unfinished.request_id, tuple)
            key, number = unfinished.request_id
            tree = self._trees[key]
            old, sampled = tree.running[number], len(unfinished.tokens)
            request = replace(
                old,
                prefix=old.prefix + unfinished.tokens,
                max_new_tokens=old.max_new_tokens - sampled,
                seed=tree.rng.getrandbits(63) if sampled else old.seed,
            )
            tree.running[number] = request
            self._source.submit([request])
