"""With several sequences of a tree in flight, what the tree becomes must not depend on who is fast.

The sampler here is the seeded toy writer of growth_toys.py, made to lose its running requests, to finish them in any
order, and to report how far they are late, early or never; the growth is the real one. Not exercised: an engine's own
reports (tests/unit/rollout).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from growth_toys import MAX_NEW_TOKENS, SAMPLER, Characters, CountingVerifier, SlowWriter, described, grow_toys
from hypothesis import given
from hypothesis import strategies as st
from strategies import IB

from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.growing_tree import GrowingTree, GrowthTask
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest
from nemo_ibtpo.tree.steps import FixedWidthSplitter, StepSplitter
from nemo_ibtpo.tree.tree import Tree


@pytest.mark.parametrize("name", ["ib", "random"])
@pytest.mark.parametrize("window", [1, 2, 4, 8, 12])
@pytest.mark.parametrize("selection", ["paper", "per_draw"])
def test_a_window_grows_the_same_trees_whatever_the_order(name: str, window: int, selection: str) -> None:
    sampler = replace(SAMPLER, name=name, max_sequences_per_tree=window)
    strategy = make_strategy(sampler, replace(IB, selection=selection), MAX_NEW_TOKENS)
    trees = grow_toys(strategy=strategy)  # one rollout at a time, no reports
    assert [tree.num_trajectories for tree in trees] == [12] * 8
    for order, max_in_flight in [(1, 1), (2, 3), (3, 100)]:
        source = SlowWriter(order, reports=order != 2)
        again = grow_toys(strategy=strategy, source=source, order=order, max_in_flight=max_in_flight)
        assert described(again) == described(trees)


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 5]))
def test_any_order_of_arrival(order: int, window: int) -> None:
    sampler = replace(SAMPLER, max_sequences_per_tree=window)
    trees = grow_toys("ab", sampler=sampler)
    assert described(grow_toys("ab", sampler=sampler, source=SlowWriter(order), order=order)) == described(trees)


@pytest.mark.parametrize("name", ["ib", "random"])
def test_a_window_of_one_is_growth_in_rounds(name: str) -> None:
    sampler = replace(SAMPLER, name=name)
    serial = grow_toys(sampler=replace(sampler, max_sequences_per_tree=1), source=SlowWriter(5))
    assert described(serial) == described(grow_toys(sampler=sampler))


def test_windows_grow_different_trees_and_keep_that_many_sequences_in_flight() -> None:
    seen: list[int] = []

    class Watching(SlowWriter):
        def submit(self, requests: Sequence[RolloutRequest]) -> None:
            super().submit(requests)
            seen.append(len(self.waiting))

    trees = {}
    for window in (1, 2, 4):
        seen.clear()
        source = Watching(0, restarts=False)
        trees[window] = grow_toys("abc", sampler=replace(SAMPLER, max_sequences_per_tree=window), source=source)
        assert max(seen) <= 3 * 4  # four are launched from the prompt
    assert described(trees[1]) != described(trees[2]) != described(trees[4])


class Scripted:
    """Answers for one tree by hand: lengths by number of the trajectory, in steps of one token."""

    def __init__(self, window: int, lengths: Sequence[int], rewards: Sequence[float]) -> None:
        sampler = replace(SAMPLER, initial_rollouts=2, rounds=3, max_sequences_per_tree=window)
        self.growing = GrowingTree(
            0,
            GrowthTask("p", (1,)),
            (1, "p", 0),
            make_strategy(sampler, IB, 100),
            FixedWidthSplitter(1),
            100,
        )
        self.lengths, self.rewards = lengths, rewards
        self.prefix: dict[int, int] = {}
        self.launched(self.growing.advance())

    def launched(self, requests: Sequence[RolloutRequest]) -> list[tuple[int, int]]:
        """(trajectory, response tokens in its prefix) of new requests."""
        new = [(request.request_id[1], len(request.prefix) - 1) for request in requests]
        self.prefix.update(new)
        return new

    def end(self, number: int) -> list[tuple[int, int]]:
        length = self.lengths[number]
        tokens = tuple(100 * number + self.prefix[number] + i for i in range(length))
        rollout = Rollout((0, number), tokens, (-0.1 * (number + 1),) * length, "eos")
        assert self.growing.accept(number, rollout) is not None
        self.growing.score(number, self.rewards[number])
        return self.launched(self.growing.advance())

    def report(self, number: int, count: int) -> list[tuple[int, int]]:
        self.growing.report(number, count)
        return self.launched(self.growing.advance())


def test_an_end_counts_once_nothing_can_come_before_it() -> None:
    script = Scripted(2, [5, 3, 4, 9], [1.0, 0.0, 1.0, 0.0])
    # Trajectory 0 ends at tick 5, but 1 may end before.
    assert script.growing.in_the_way() == {}
    assert script.end(0) == []
    assert script.report(1, 2) == []
    assert script.growing.clock == 0
    # With four tokens it ends at 5 at the earliest too, and has the larger number.
    assert script.growing.in_the_way() == {(0, 1): 4}
    assert script.growing.behind(2) == {}
    assert script.growing.behind(3) == {(0, 1): 3}
    # 1 ends at 3: the third one is launched there, with trajectory 1 in the tree and 0 not.
    ((number, _),) = script.end(1)
    assert (number, script.growing.clock) == (2, 3)
    assert [node.tokens[0] for node in script.growing.tree.nodes[1:]] == [100, 101, 102]
    # Launched at 3, 2 may end at 4: it has to be beyond its first token before the end of 0 at 5 counts.
    assert script.growing.clock == 3
    assert script.growing.in_the_way() == {(0, 2): 1}
    ((number, _),) = script.report(2, 1)
    assert (number, script.growing.clock) == (3, 5)
    # The last two end at 7 and at 14; nothing is launched any more, and both are inserted once both are known.
    assert script.end(3) == []
    assert not script.growing.is_complete
    assert script.end(2) == []
    assert script.growing.is_complete
    assert script.growing.clock == 14
    assert script.growing.tree.num_trajectories == 4


def test_equal_ticks_go_by_number() -> None:
    script = Scripted(2, [3, 3, 4, 4], [1.0, 0.0, 1.0, 0.0])
    assert script.end(1) == []
    assert script.report(0, 2) == []  # it may end at 3 too, and has the smaller number
    assert script.growing.in_the_way() == {(0, 0): 3}
    assert [number for number, _ in script.end(0)] == [2, 3]
    # 2 was chosen when 0 had ended and 1 had not, at the same tick.
    assert script.growing.clock == 3
    assert [node.round for node in script.growing.tree.nodes[1:]] == [0] * 6


def test_a_choice_waits_for_the_reward() -> None:
    script = Scripted(2, [5, 3, 4, 9], [1.0, 0.0, 1.0, 0.0])
    tokens = (1, 2, 3)
    assert script.growing.accept(1, Rollout((0, 1), tokens, (-0.1,) * 3, "eos")) == tokens
    script.growing.report(0, 4)
    assert script.growing.advance() == []
    assert script.growing.awaits_rewards
    script.growing.score(1, 0.0)
    assert [request.request_id for request in script.growing.advance()] == [(0, 2)]


def chain(tree: Tree, base: int, length: int, logprob: float, reward: float) -> None:
    steps = [([base + i], [logprob]) for i in range(length)]
    tree.set_reward(tree.insert(ROOT, steps, "eos", 0), reward)


@pytest.mark.parametrize("selection", ["paper", "per_draw"])
def test_sequences_in_flight_send_the_next_branch_elsewhere(selection: str) -> None:
    tree = Tree("p", (1,))
    chain(tree, 10, 3, -2.0, 1.0)
    chain(tree, 20, 3, -0.5, 1.0)
    sampler = replace(SAMPLER, max_sequences_per_tree=4)
    strategy = make_strategy(sampler, replace(IB, selection=selection), 100)
    chosen: list[int] = []
    for round in range(1, 4):
        in_flight = {node: chosen.count(node) for node in chosen}
        (point,) = strategy.next_round(tree, round, np.random.default_rng(0), in_flight)
        chosen.append(point.node)
    # The least likely steps come first, both with one draw. Then, with pi 0.135 and 0.607 of the two chains:
    # paper: -1.2 * (0.135 + 1) / 2 at 1, -1.2 * 0.371 at the root (highest), -1.2 * 0.607 at 4;
    # per_draw: 0.865 * 0.865 / 2 at 1 (highest), 0.629 * 0.258 / 2 at the root, 0.393 * 0.393 at 4.
    assert chosen == {"paper": [1, 2, ROOT], "per_draw": [1, 2, 1]}[selection]


def test_steps_are_those_of_the_whole_response() -> None:
    splitter = StepSplitter(Characters())
    sampler = replace(SAMPLER, max_sequences_per_tree=3)
    shared = 0
    for tree in grow_toys("abcdefgh", sampler=sampler):
        for leaf in tree.leaves():
            natural = [piece.stop for piece in splitter.split(tree.response_tokens(leaf.index))]
            ends = [tree.depth_tokens(node) for node in tree.path(leaf.index)[1:]]
            # Where a continuation shows no text, the end of the step that it was branched at stays one.
            assert set(natural) <= set(ends)
            shared += ends == natural
    assert shared > 50


def test_the_verifier_works_while_the_sampler_does() -> None:
    """A response is scored when it has ended, not when its round has."""
    verifier = CountingVerifier(0)
    source = SlowWriter(1)
    waiting_when_scored: list[int] = []
    submit = verifier.submit
    verifier.submit = lambda *args: (waiting_when_scored.append(len(source.waiting)), submit(*args))  # type: ignore[method-assign]
    grow_toys("a", source=source, rewards=verifier)
    assert max(waiting_when_scored) > 0
