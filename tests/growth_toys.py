"""A sampler and a verifier for tests of growth: toys, but real ones.

The sampler is a seeded random writer whose text depends on prefix and seed only, as an engine's does; the verifier is
a rule. Both finish in an order of their own.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence

from strategies import IB

from nemo_ibtpo.config.schema import SamplerConfig
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.growth import GrowthTask, grow
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest, Unfinished
from nemo_ibtpo.tree.steps import make_splitter
from nemo_ibtpo.tree.tree import Tree

MAX_NEW_TOKENS = 12
END = ord(".")
SAMPLER = SamplerConfig(
    name="ib",
    initial_rollouts=4,
    rounds=9,
    branch_points=1,
    rollouts_per_branch=1,
    segment_tokens=None,
    branch_root=True,
    min_new_tokens=1,
    merge=True,
    max_sequences_per_tree=None,
    max_trees_in_flight=8,
    carry_over=0.0,
    max_policy_lag=2,
)


class Characters:
    """A token is a character."""

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
        return "".join(map(chr, token_ids))


class RandomWriter:
    """Writes letters and line feeds until a full stop; finishes one request a poll, in random order."""

    def __init__(self, order: int) -> None:
        self.order = random.Random(order)
        self.waiting: list[RolloutRequest] = []
        self.log: list[RolloutRequest] = []
        self.version = 0  # of the weights: others write other texts

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        self.waiting += requests
        self.log += requests

    def poll(self) -> list[Rollout]:
        if not self.waiting:
            return []
        return [self.write(self.waiting.pop(self.order.randrange(len(self.waiting))))]

    def progress(self, at_least: Mapping[Hashable, int]) -> dict[Hashable, int]:
        return {}

    def write(self, request: RolloutRequest) -> Rollout:
        rng = random.Random(repr((request.prefix, request.seed, self.version)[: 3 if self.version else 2]))
        tokens: list[int] = []
        while len(tokens) < request.max_new_tokens and END not in tokens:
            tokens.append(ord(rng.choice("ab\n\n\n\n.")))
        logprobs = tuple(rng.uniform(-2, 0) for _ in tokens)
        reason = "eos" if tokens[-1] == END else "length"
        return Rollout(request.request_id, tuple(tokens), logprobs, reason)


class SlowWriter(RandomWriter):
    """Draws a token of a few requests in each poll, and starts all over now and then; tells how far they are."""

    def __init__(self, order: int, *, reports: bool = True, restarts: bool = True) -> None:
        super().__init__(order)
        self.reports, self.restarts = reports, restarts
        self.drawn: dict[Hashable, int] = {}
        self.reported: dict[Hashable, int] = {}

    def poll(self) -> list[Rollout]:
        if self.restarts and self.order.random() < 0.02:
            self.drawn.clear()
            self.order.shuffle(self.waiting)
        finished = []
        for request in self.order.sample(self.waiting, min(len(self.waiting), 5)):
            rollout, drawn = self.write(request), self.drawn.get(request.request_id, 0) + 1
            if drawn == len(rollout.tokens):
                self.waiting.remove(request)
                self.drawn.pop(request.request_id, None)
                self.reported.pop(request.request_id, None)
                finished.append(rollout)
            else:
                self.drawn[request.request_id] = self.reported[request.request_id] = drawn
        return finished

    def progress(self, at_least: Mapping[Hashable, int]) -> dict[Hashable, int]:
        if not self.reports or self.order.random() < 0.3:
            return {}
        reported = {id_: self.reported[id_] for id_ in at_least if id_ in self.reported and self.order.random() < 0.8}
        return {id_: count for id_, count in reported.items() if count >= at_least[id_]}

    def cut(self, at_least: Mapping[Hashable, int]) -> list[Unfinished]:
        cut = []
        for request in self.waiting:
            rollout, drawn = self.write(request), self.drawn.get(request.request_id, 0)
            drawn = max(drawn, at_least.get(request.request_id, 0))
            assert drawn < len(rollout.tokens)
            cut.append(Unfinished(request.request_id, rollout.tokens[:drawn], rollout.logprobs[:drawn]))
        self.waiting.clear()
        self.drawn.clear()
        self.reported.clear()
        return cut


class CountingVerifier:
    """Right is a response with an even number of a's; answers in random order, some polls later."""

    def __init__(self, order: int) -> None:
        self.order = random.Random(order)
        self.waiting: list[tuple[Hashable, float]] = []
        self.log: list[tuple[str, tuple[int, ...]]] = []

    def submit(self, key: Hashable, prompt_id: str, response_tokens: tuple[int, ...]) -> None:
        self.log.append((prompt_id, response_tokens))
        self.waiting.append((key, float(response_tokens.count(ord("a")) % 2 == 0)))

    def poll(self) -> list[tuple[Hashable, float]]:
        self.order.shuffle(self.waiting)
        answered = self.waiting[: self.order.randrange(3)]
        del self.waiting[: len(answered)]
        return answered


def grow_toys(
    prompts: Sequence[str] = "abcdefgh",
    *,
    order: int = 0,
    max_in_flight: int = 3,
    seed: int = 1,
    sampler: SamplerConfig = SAMPLER,
    **parts,
) -> list[Tree]:
    settings = {
        "source": RandomWriter(order),
        "rewards": CountingVerifier(order),
        "strategy": make_strategy(sampler, IB, MAX_NEW_TOKENS),
        "splitter": make_splitter(sampler.segment_tokens, Characters()),
        "max_new_tokens": MAX_NEW_TOKENS,
        "stall_timeout_s": 30.0,
    }
    tasks = [GrowthTask(prompt, (ord("?"), ord(prompt))) for prompt in prompts]
    return grow(tasks, seed=seed, max_in_flight=max_in_flight, **{**settings, **parts})


def described(trees: Sequence[Tree]) -> list[dict]:
    return [tree.to_dict() for tree in trees]
