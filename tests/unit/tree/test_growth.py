"""Growth must give the same trees however the engine schedules its work, and must never hang.

The sampler and the verifier here are toys, but real ones: a seeded random writer whose text depends on prefix
and seed only, as an engine's does, and a rule that scores it. They finish in an order of their own. Not
exercised: a language model (tests/unit/rollout) and verifiers in other processes (tests/unit/rewards).
"""

from __future__ import annotations

import itertools
import time
import types
from collections.abc import Hashable
from dataclasses import replace

import pytest
from growth_toys import (
    MAX_NEW_TOKENS,
    SAMPLER,
    Characters,
    CountingVerifier,
    RandomWriter,
    described,
    grow_toys,
)

from nemo_ibtpo.tree import growth
from nemo_ibtpo.tree.branching import BranchPoint
from nemo_ibtpo.tree.growth import GrowthProgress
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest
from nemo_ibtpo.tree.steps import StepSplitter


class Wide(Characters):
    """No blank lines, so that every trajectory is one step."""

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
        return "x"


SHAPES = {
    "ib": {"branch_points": 2, "rollouts_per_branch": 2, "rounds": 4},
    "random": {"branch_points": 2, "rollouts_per_branch": 2, "rounds": 4},
    "independent": {"initial_rollouts": 16, "rounds": 1},
    "entropy": {"branch_points": 4, "rollouts_per_branch": 1, "rounds": 4},
    "fixed_width": {"branch_points": 4, "rollouts_per_branch": 1, "rounds": 4, "segment_tokens": 2},
    "full": {"rollouts_per_branch": 1, "rounds": 3, "segment_tokens": 2},
}


@pytest.mark.parametrize("name", SHAPES)
def test_same_seed_same_trees_whatever_the_order_and_the_number_in_flight(name: str) -> None:
    sampler = replace(SAMPLER, name=name, **SHAPES[name])
    assert sampler.trajectories_per_prompt == 16
    trees = grow_toys(sampler=sampler)
    for order, max_in_flight in [(1, 1), (2, 3), (3, 100)]:
        assert described(grow_toys(sampler=sampler, order=order, max_in_flight=max_in_flight)) == described(trees)
    assert described(grow_toys(sampler=sampler, seed=2)) != described(trees)
    assert [tree.num_trajectories for tree in trees] == [16] * 8
    assert [tree.prompt_id for tree in trees] == list("abcdefgh")


def test_a_tree_does_not_depend_on_its_neighbours() -> None:
    assert described(grow_toys("c")) == described(grow_toys("abcd"))[2:3]


def test_the_trees_are_worth_testing() -> None:
    """Steps are shared, trajectories repeat and some are cut off: the other tests rest on these cases."""
    trees = grow_toys()
    assert any(leaf.draws > 1 for tree in trees for leaf in tree.leaves())
    assert any(leaf.finish_reason == "length" for tree in trees for leaf in tree.leaves())
    assert sum(tree.unique_tokens < tree.duplicated_tokens for tree in trees) > len(trees) / 2
    assert any(node.round > 0 for tree in trees for node in tree.nodes)


def test_requests_continue_the_branch_point_within_the_length_limit() -> None:
    source, rewards = RandomWriter(0), CountingVerifier(0)
    trees = grow_toys(source=source, rewards=rewards)
    assert len({request.request_id for request in source.log}) == len(source.log) == 12 * len(trees)
    assert len({request.seed for request in source.log}) == len(source.log)
    by_prompt = {tree.prompt_id: tree for tree in trees}
    branched = 0
    for request in source.log:
        tree = by_prompt[chr(request.prefix[1])]
        response = request.prefix[2:]
        assert request.max_new_tokens == MAX_NEW_TOKENS - len(response)
        assert response in {tree.response_tokens(node.index) for node in tree.nodes if not node.is_leaf}
        branched += bool(response)
    assert branched > 0
    # Every distinct trajectory was scored once, truncated ones too, and has that reward.
    assert len(rewards.log) == len(set(rewards.log)) == sum(len(list(tree.leaves())) for tree in trees)
    for tree in trees:
        for leaf in tree.leaves():
            response = tree.response_tokens(leaf.index)
            assert (tree.prompt_id, response) in rewards.log
            assert len(response) <= MAX_NEW_TOKENS
            assert leaf.reward == float(response.count(ord("a")) % 2 == 0)


def test_seeds_are_the_same_in_every_process() -> None:
    """Written down, because Python's own hash of a string would differ from run to run."""
    source = RandomWriter(0)
    grow_toys("a", source=source, sampler=replace(SAMPLER, rounds=1))
    assert [request.seed for request in source.log] == [
        3880693440685417048,
        6892581200265878120,
        566982581452217059,
        1767366094890339350,
    ]


def test_a_fork_inside_a_step_keeps_the_steps_of_the_whole_response() -> None:
    """Where steps end does not depend on where a response was forked, and forks do occur inside steps."""
    trees = grow_toys(sampler=replace(SAMPLER, name="entropy", **SHAPES["entropy"]))
    splitter = StepSplitter(Characters())
    inside = 0
    for tree in trees:
        assert all(tree.unique_tokens < tree.duplicated_tokens for tree in trees)
        for leaf in tree.leaves():
            ends = {tree.depth_tokens(index) for index in tree.path(leaf.index)[1:]}
            natural = {step.stop for step in splitter.split(tree.response_tokens(leaf.index))}
            assert natural <= ends
            inside += len(ends - natural)
    assert inside > 0


def test_segments_lie_on_one_grid() -> None:
    for tree in grow_toys(sampler=replace(SAMPLER, name="full", **SHAPES["full"])):
        assert all(len(node.tokens) == 2 for node in tree.nodes[1:] if not node.is_leaf)


def test_a_prompt_that_comes_twice_gets_two_trees() -> None:
    twice = grow_toys("aa")
    assert described(twice[:1]) == described(grow_toys("a"))
    assert described(twice[:1]) != described(twice[1:])


def test_no_barrier_between_trees() -> None:
    """While one tree waits for its first round, the others are grown to the end."""

    class Stubborn(RandomWriter):
        def poll(self) -> list[Rollout]:
            ready = [request for request in self.waiting if request.prefix[1] != ord("a")]
            if not ready:
                seen.append({chr(request.prefix[1]) for request in self.waiting})
                return super().poll()
            self.waiting.remove(ready[0])
            return [self.write(ready[0])]

    class Prompt(CountingVerifier):
        def poll(self) -> list[tuple[Hashable, float]]:
            answered, self.waiting = self.waiting, []
            return answered

    seen: list[set[str]] = []
    progress: list[GrowthProgress] = []
    source = Stubborn(0)
    grow_toys("abcd", source=source, rewards=Prompt(0), max_in_flight=2, on_progress=progress.append)
    assert seen[0] == {"a"}
    last_of_others = max(i for i, request in enumerate(source.log) if request.prefix[1] != ord("a"))
    second_round_of_a = [i for i, r in enumerate(source.log) if r.prefix[1] == ord("a")][4]
    assert last_of_others < second_round_of_a
    assert (progress[-1].trees, progress[-1].total_trees, progress[-1].trajectories) == (4, 4, 48)
    assert [p.sampled_tokens for p in progress] == sorted(p.sampled_tokens for p in progress)


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_no_more_trees_in_flight_than_allowed(max_in_flight: int) -> None:
    class Watching(RandomWriter):
        def poll(self) -> list[Rollout]:
            seen.append(len({request.prefix[1] for request in self.waiting}))
            return super().poll()

    seen: list[int] = []
    grow_toys(source=Watching(0), max_in_flight=max_in_flight)
    assert max(seen) == max_in_flight


def changed(**fields) -> type[RandomWriter]:
    """A writer whose rollouts have other fields; a callable computes one from the rollout."""

    class Changed(RandomWriter):
        def write(self, request: RolloutRequest) -> Rollout:
            rollout = super().write(request)
            return replace(rollout, **{k: v(rollout) if callable(v) else v for k, v in fields.items()})

    return Changed


class Repeating(RandomWriter):
    def poll(self) -> list[Rollout]:
        return super().poll() * 2


class Greedy:
    """Branches the leaf."""

    window = 1

    def next_round(self, tree, round, rng, in_flight) -> list[BranchPoint]:
        return [BranchPoint(ROOT, 1)] if round == 0 else [BranchPoint(len(tree.nodes) - 1, 1)]


LONG = (ord("a"),) * (MAX_NEW_TOKENS + 1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (changed(request_id="nobody's"), 'not awaited: "nobody\'s"'),
        (changed(request_id=(99, 0)), r"not awaited: \(99, 0\)"),
        (changed(request_id=(0, 99)), r"not awaited: \(0, 99\)"),
        (Repeating, "not awaited"),
        (changed(tokens=(), logprobs=()), "returned 0 tokens; between 1 and 12"),
        (changed(tokens=LONG, logprobs=(-1.0,) * len(LONG)), "returned 13 tokens; between 1 and 12"),
        (changed(logprobs=lambda r: r.logprobs[1:]), "log-probabilities for"),
        (changed(logprobs=lambda r: (float("nan"), *r.logprobs[1:])), "not finite"),
    ],
)
def test_a_source_that_breaks_its_protocol_is_named(source, message: str) -> None:
    with pytest.raises(RuntimeError, match=message) as caught:
        grow_toys("a", source=source(0))
    assert "\n" not in str(caught.value)


def test_a_verifier_that_breaks_its_protocol_is_named() -> None:
    class Wrong(CountingVerifier):
        def __init__(self, answer: tuple[Hashable, float]) -> None:
            super().__init__(0)
            self.answer = answer

        def poll(self) -> list[tuple[Hashable, float]]:
            key, reward = self.answer
            return [(key or self.waiting[0][0], reward)] if self.waiting else []

    for answer, error, message in [
        (("?", 1.0), RuntimeError, "verifier returned a reward that is not awaited: '\\?'"),
        (((0, 4), 1.0), RuntimeError, r"verifier returned a reward that is not awaited: \(0, 4\)"),
        (((0, "?"), 1.0), RuntimeError, r"verifier returned a reward that is not awaited: \(0, '\?'\)"),
        ((None, 7.0), ValueError, r"reward 7.0 of trajectory \d is outside \[0, 1\]"),
    ]:
        with pytest.raises(error, match=message):
            grow_toys("a", rewards=Wrong(answer), splitter=StepSplitter(Wide()))


def test_silence_is_an_error_not_a_hang() -> None:
    class Silent(RandomWriter):
        def poll(self) -> list[Rollout]:
            return []

    class Mute(CountingVerifier):
        def poll(self) -> list[tuple[Hashable, float]]:
            return []

    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"for 0.05 s while 2 trees waited for rollouts \['a', 'b'\] and 0 "):
        grow_toys("ab", source=Silent(0), stall_timeout_s=0.05)
    with pytest.raises(RuntimeError, match=r"0 trees waited for rollouts \[\] and 2 for rewards \['a', 'b'\]"):
        grow_toys("ab", rewards=Mute(0), stall_timeout_s=0.05)
    assert 0.1 < time.monotonic() - began < 10


def test_growth_may_take_longer_than_silence_may_last(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()  # the clock goes on by a second whenever it is read, twice in a turn
    clock = types.SimpleNamespace(monotonic=lambda: next(seconds), sleep=time.sleep)
    monkeypatch.setattr(growth, "time", clock)
    grow_toys(stall_timeout_s=60.0)
    assert next(seconds) > 120


def test_a_strategy_without_room_and_a_flight_of_none_are_refused() -> None:
    class Filling(RandomWriter):
        def write(self, request: RolloutRequest) -> Rollout:
            full = (ord("a"),) * request.max_new_tokens
            return Rollout(request.request_id, full, (-1.0,) * len(full), "length")

    with pytest.raises(RuntimeError, match="branches node 1, but no token is left below it"):
        grow_toys("a", source=Filling(0), strategy=Greedy())
    with pytest.raises(ValueError, match="max_in_flight=0"):
        grow_toys("a", max_in_flight=0)


def test_waiting_does_not_burn_the_processor() -> None:
    """An answer that takes its time is polled for about a thousand times a second, not a million."""
    polls = 0

    class Slow(CountingVerifier):
        def poll(self) -> list[tuple[Hashable, float]]:
            nonlocal polls
            polls += 1
            return super().poll() if polls > 100 else []

    began = time.monotonic()
    grow_toys("a", rewards=Slow(0), sampler=replace(SAMPLER, rounds=1))
    assert time.monotonic() - began > 0.09
