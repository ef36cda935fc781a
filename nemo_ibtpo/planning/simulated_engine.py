"""Engines in virtual time, for growth to sample on: what a step of sampling costs on machines that are not there.

The growth is the real one; of a language model there is only how long responses are. Each engine decodes its batch
in quanta of some tokens. A request waits until a place in the batch and room in the cache are free, oldest first. Its
prefix is computed, but for what begins like something of its tree that was computed or sampled under the same
weights. When keys and values fill the cache, the youngest sequence is preempted: it waits in front of the queue, and
what it had is computed once more. A response that was cut off and goes on ends where it would have ended.

Not modelled: the cache of ended sequences being evicted before their tree needs it, prefills that delay some
sequences of a batch and not others, and time between engine and growth.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from nemo_ibtpo.planning.engine_model import EngineModel
from nemo_ibtpo.tree.node import FinishReason
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest, Unfinished

LengthOf = Callable[[RolloutRequest], int]
"""Tokens, in quanta, that a request samples until its response ends; at most ``max_new_tokens``. Not asked for a
request that goes on with one that was cut off."""


@dataclass(eq=False, slots=True)
class _Sequence:
    request: RolloutRequest
    length: int
    engine: _Engine
    drawn: int = 0  # when it was admitted last, or cut
    since: int = 0  # quantum of its engine at that moment
    prefix: int = 0  # of it, what had to be computed
    running: bool = False

    @property
    def far(self) -> int:
        """Tokens drawn so far."""
        return self.drawn + (self.engine.quanta - self.since if self.running else 0)


@dataclass(slots=True)
class _Engine:
    """One engine; tokens in quanta."""

    model: EngineModel
    quantum: int
    now: float = 0.0
    quanta: int = 0
    queue: deque[_Sequence] = field(default_factory=deque)
    running: dict[Hashable, _Sequence] = field(default_factory=dict)  # oldest first
    ends: list[tuple[int, int, _Sequence]] = field(default_factory=list)  # heap
    order: int = 0
    seen: int = 0  # quanta of all running sequences' prefixes and own tokens, for reading
    held: int = 0  # quanta that running sequences hold in the cache beside shared prefixes
    known: dict[Hashable, list[tuple[int, ...]]] = field(default_factory=dict)  # computed for a tree

    def admit(self) -> None:
        limit = self.model.cache_tokens // self.quantum
        while self.queue and len(self.running) < self.model.max_batch:
            sequence = self.queue[0]
            prefix = sequence.request.prefix
            missing = len(prefix) - self._known_of(prefix, sequence.request.request_id)
            need = missing + sequence.drawn + 1
            if self.running and self.held + need + len(self.running) > limit:
                return
            self.queue.popleft()
            self.now += (missing + sequence.drawn) * self.quantum * self.model.prefill_token_s
            self.held += missing + sequence.drawn
            sequence.prefix = missing
            self.seen += len(prefix) + sequence.drawn
            sequence.running, sequence.since = True, self.quanta
            self.running[sequence.request.request_id] = sequence
            self.order += 1
            heapq.heappush(self.ends, (self.quanta + sequence.length - sequence.drawn, self.order, sequence))

    def _known_of(self, prefix: tuple[int, ...], request_id: Hashable) -> int:
        """Length of the prefix that is computed already; the whole prefix is known from now on."""
        known = self.known.setdefault(_tree(request_id), [])
        longest = max((_common(one, prefix) for one in known), default=0)
        if longest < len(prefix):
            known.append(prefix)
        return longest

    def advance(self) -> list[_Sequence]:
        """Decode a quantum; the sequences that end with it."""
        batch = len(self.running)
        cached = self.quantum * (self.seen + batch / 2)
        self.now += self.quantum * self.model.decode_s(batch, cached)
        self.quanta += 1
        self.seen += batch
        self.held += batch
        ended = []
        while self.ends and self.ends[0][0] <= self.quanta:
            sequence = heapq.heappop(self.ends)[2]
            if sequence.running and sequence.far >= sequence.length:
                self.leave(sequence)
                ended.append(sequence)
        while self.held + len(self.running) > self.model.cache_tokens // self.quantum and len(self.running) > 1:
            youngest = next(reversed(self.running.values()))
            self.leave(youngest)
            self.queue.appendleft(youngest)
        return ended

    def leave(self, sequence: _Sequence) -> None:
        sequence.drawn = sequence.far
        sequence.running = False
        del self.running[sequence.request.request_id]
        self.seen -= len(sequence.request.prefix) + sequence.drawn
        self.held -= sequence.drawn + sequence.prefix

    def remember(self, request: RolloutRequest, tokens: tuple[int, ...]) -> None:
        self.known.setdefault(_tree(request.request_id), []).append(request.prefix + tokens)


class SimulatedEngines:
    """A ``RolloutSource``: engines side by side in virtual time, trees dealt to them in turn.

    Args:
        model: of each engine.
        engines: how many there are.
        length_of: how long continuations are.
        quantum: tokens that are decoded at once; all lengths of requests and rollouts are in quanta.

    Attributes:
        sampled: quanta drawn.
    """

    def __init__(self, model: EngineModel, engines: int, length_of: LengthOf, quantum: int) -> None:
        self.sampled = 0
        self._engines = [_Engine(model, quantum) for _ in range(engines)]
        self._length_of = length_of
        self._sequences: dict[Hashable, _Sequence] = {}
        # Of responses that were cut off: the first token, the first one that was not drawn, the end.
        self._cuts: list[tuple[int, int, int]] = []
        self._going_on: set[int] = set()  # places of those that go on
        self._busy_s = 0.0  # places of the batch x seconds
        self._seconds = 0.0
        self._next_token = 1
        rng = random.Random(0)
        self._logprobs = tuple(-rng.expovariate(3.0) for _ in range(4096))

    @property
    def count(self) -> int:
        """How many engines there are."""
        return len(self._engines)

    @property
    def now(self) -> float:
        """Seconds that have passed."""
        return max(engine.now for engine in self._engines)

    @property
    def places(self) -> float:
        """Sequences that an engine decoded at once, mean over the time until now."""
        return self._busy_s / (self.now * len(self._engines)) if self.now else 0.0

    def synchronize(self) -> None:
        """New weights: engines wait for one another, and nothing that was computed is of use any more."""
        now = self.now
        for engine in self._engines:
            engine.now = now
            engine.known.clear()
            engine.held = 0

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """Accept requests."""
        for request in requests:
            length = min(self._left_of(request) or self._length_of(request), request.max_new_tokens)
            engine = self._engine(request.request_id)
            sequence = self._sequences[request.request_id] = _Sequence(request, length, engine)
            if not engine.running and not engine.queue:
                engine.now = max(engine.now, self._seconds)
            engine.queue.append(sequence)

    def poll(self) -> list[Rollout]:
        """Let the engine that is behind decode a quantum; what has finished."""
        waiting = [engine for engine in self._engines if engine.running or engine.queue]
        if not waiting:
            return []
        engine = min(waiting, key=lambda engine: engine.now)
        before = engine.now
        engine.admit()
        batch = len(engine.running)
        ended = engine.advance()
        self._busy_s += batch * (engine.now - before)
        self.sampled += batch
        self._seconds = max(self._seconds, before)
        return [self._finish(engine, sequence) for sequence in ended]

    def progress(self, at_least: Mapping[Hashable, int]) -> Mapping[Hashable, int]:
        """How far requests are."""
        drawn = ((id_, count, self._sequences.get(id_)) for id_, count in at_least.items())
        return {id_: far for id_, count, one in drawn if one and (far := one.far) >= count}

    def cut(self, at_least: Mapping[Hashable, int]) -> list[Unfinished]:
        """End all requests."""
        cut = []
        self._cuts.clear()
        self._going_on.clear()
        for request_id, sequence in self._sequences.items():
            first = self._next_token
            self._cuts.append((first, first + sequence.far, first + sequence.length))
            cut.append(Unfinished(request_id, *self._text(sequence.far)))
            if sequence.running:
                sequence.engine.leave(sequence)
        self._sequences.clear()
        for engine in self._engines:
            engine.queue.clear()
            engine.ends.clear()
        return cut

    def _left_of(self, request: RolloutRequest) -> int:
        """Quanta that are left of a response that was cut off and goes on; 0 for any other request."""
        last = request.prefix[-1]
        place = bisect_right(self._cuts, last, key=itemgetter(0)) - 1
        if place < 0 or place in self._going_on or last >= self._cuts[place][1]:
            return 0
        self._going_on.add(place)  # what begins behind it later is a branch
        return self._cuts[place][2] - 1 - last

    def _finish(self, engine: _Engine, sequence: _Sequence) -> Rollout:
        request = sequence.request
        del self._sequences[request.request_id]
        tokens, logprobs = self._text(sequence.length)
        engine.remember(request, tokens)
        reason: FinishReason = "length" if sequence.length == request.max_new_tokens else "eos"
        return Rollout(request.request_id, tokens, logprobs, reason)

    def _text(self, length: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Tokens that nothing else has, and log-probabilities."""
        first = self._next_token
        self._next_token += length
        offset = first * 37 % 2048
        return tuple(range(first, first + length)), self._logprobs[offset : offset + length]

    def _engine(self, request_id: Hashable) -> _Engine:
        return self._engines[hash(_tree(request_id)) % len(self._engines)]


def _tree(request_id: Hashable) -> Hashable:
    """Requests of growth are called (tree, trajectory)."""
    return request_id[0] if isinstance(request_id, tuple) else request_id


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Length of the common beginning: tokens are unique to a rollout, so equal tokens come after equal ones."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
