"""Trees that go on under new weights must be the same however fast the machine is, and none may be lost or repeated.

The growth is the real one; the sampler is the seeded toy writer of growth_toys.py, which writes other texts under
other weights, finishes in any order and starts again now and then. Owners of engines run in threads. Not exercised:
engines (tests/unit/rollout), the training loop (tests/distributed).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from growth_toys import MAX_NEW_TOKENS, SAMPLER, Characters, CountingVerifier, SlowWriter, described
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import IB

from nemo_ibtpo.config.schema import SamplerConfig
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.carry_over import Horizon, StepOfTrees, grow_until_closed, merge_steps
from nemo_ibtpo.tree.growing_tree import GrowthTask
from nemo_ibtpo.tree.steps import make_splitter
from nemo_ibtpo.tree.tree import Tree
from nemo_ibtpo.tree.trees_in_flight import CarriedTree, Closing, TreesInFlight, read_trees, write_trees

WINDOW = replace(SAMPLER, max_sequences_per_tree=4)
FORKS = replace(SAMPLER, name="entropy", rounds=2, branch_points=8, merge=False)
CHAINS = replace(SAMPLER, name="independent", initial_rollouts=6, rounds=1)
TWO_CHAINS = replace(CHAINS, initial_rollouts=2)
PER_STEP = 4


def owners_meet(owners: int):
    """A collective of threads: what each brought, to all."""
    barrier, horizons = threading.Barrier(owners, timeout=60), {}

    def of(owner: int):
        def exchange(horizon: Horizon) -> Sequence[Horizon]:
            horizons[owner] = horizon
            barrier.wait()
            everyone = [horizons[i] for i in range(owners)]
            barrier.wait()
            return everyone

        return exchange

    return of


def task(prompt_id: str, merge: bool = True) -> GrowthTask:
    return GrowthTask(prompt_id, (ord("?"), int(prompt_id)), merge)


def grow_share(
    in_flight: TreesInFlight,
    closing: Closing,
    source: SlowWriter,
    sampler: SamplerConfig,
    owner=slice(None),
    **options,
) -> StepOfTrees:
    settings = {
        "source": source,
        "rewards": CountingVerifier(1),
        "strategy": make_strategy(sampler, IB, MAX_NEW_TOKENS),
        "splitter": make_splitter(None, Characters()),
        "max_new_tokens": MAX_NEW_TOKENS,
        "stall_timeout_s": 30.0,
    }
    trees = dict(list(enumerate(in_flight.trees))[owner])
    tasks = {tree.prompt_id: task(tree.prompt_id, sampler.merge) for tree in trees.values()}
    return grow_until_closed(trees, tasks, closing, **{**settings, **options})


def one_step(
    in_flight: TreesInFlight,
    closing: Closing,
    sampler: SamplerConfig,
    *,
    order: int,
    owners: int = 1,
    idle: int = 0,
    **habits: bool,
) -> list[StepOfTrees]:
    """A step on owners of engines, and on ranks that have none."""
    exchange_of, steps, errors = owners_meet(owners + idle), {}, []

    def own(owner: int) -> None:
        source = SlowWriter(order + owner, **habits)
        source.version = closing.version
        own = slice(owner, None, owners) if owner < owners else slice(0, 0)
        parts = {"rewards": CountingVerifier(order + owner), "exchange": exchange_of(owner)}
        try:
            steps[owner] = grow_share(in_flight, closing, source, sampler, own, **parts)
            assert source.waiting == []
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=own, args=(owner,)) for owner in range(owners + idle)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [steps[owner] for owner in range(owners + idle)]


def train(
    steps: int,
    *,
    sampler: SamplerConfig = WINDOW,
    more: int = PER_STEP // 2,
    lag: int = 3,
    updates: int = 1,
    order: int = 0,
    reload: bool = False,
    **options,
) -> tuple[list[list[Tree]], TreesInFlight, list[list[StepOfTrees]]]:
    """What a run would train in each step; with ``reload`` it is stopped and resumed between any two of them."""
    in_flight = TreesInFlight(PER_STEP, PER_STEP + more, lag, updates)
    prompts = map(str, range(1000))
    trained, ends = [], []
    for step in range(steps):
        closing = in_flight.begin(list(islice(prompts, in_flight.missing)), 100 + step, step * updates)
        ends.append(one_step(in_flight, closing, sampler, order=order + step, **options))
        whole = merge_steps(ends[-1])
        in_flight.end(whole.carried)
        trained.append(list(whole.closed.values()))
        if reload:
            with TemporaryDirectory() as directory:
                write_trees(Path(directory) / "trees", in_flight.trees)
                saved = read_trees(Path(directory) / "trees")
            assert saved == in_flight.trees
            in_flight = TreesInFlight(PER_STEP, PER_STEP + more, lag, updates)
            in_flight.trees = saved
    return trained, in_flight, ends


def flat(trained: list[list[Tree]]) -> list[list[dict]]:
    return [described(trees) for trees in trained]


@pytest.mark.parametrize("sampler", [WINDOW, SAMPLER, FORKS, CHAINS], ids=["window", "rounds", "forks", "chains"])
def test_the_same_trees_whatever_the_order_and_the_number_of_owners(sampler: SamplerConfig) -> None:
    trained, in_flight, ends = train(6, sampler=sampler)
    ticks = [step[0].tick for step in ends]
    assert all(tick > 0 for tick in ticks)
    for options in (
        {"order": 7},
        {"order": 8, "reports": False},
        {"order": 9, "owners": 2, "idle": 1},
        {"order": 10, "owners": 3, "reload": True},
    ):
        again, still_in_flight, ends_again = train(6, sampler=sampler, **options)
        assert flat(again) == flat(trained)
        assert still_in_flight.trees == in_flight.trees
        assert [{step.tick for step in steps} for steps in ends_again] == [{tick} for tick in ticks]


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from([1, PER_STEP]), st.sampled_from([2, 4]))
def test_any_order_of_arrival(order: int, more: int, window: int) -> None:
    sampler = replace(SAMPLER, max_sequences_per_tree=window)
    trained, in_flight, _ = train(3, sampler=sampler, more=more)
    again, still_in_flight, _ = train(3, sampler=sampler, more=more, order=order, reload=True)
    assert flat(again) == flat(trained)
    assert still_in_flight.trees == in_flight.trees


def test_every_prompt_is_trained_once_and_in_whole_trees() -> None:
    trained, in_flight, _ = train(10)
    assert [len(trees) for trees in trained] == [PER_STEP] * 10
    assert all(tree.num_trajectories == 12 for trees in trained for tree in trees)
    done = [int(tree.prompt_id) for trees in trained for tree in trees]
    still = [int(tree.prompt_id) for tree in in_flight.trees]
    assert len(still) == 2 + 3  # half as many as a step trains are in flight, and others wait
    assert sorted(done + still) == list(range(45))
    for trees in trained:
        assert [int(tree.prompt_id) for tree in trees] == sorted(int(tree.prompt_id) for tree in trees)


@pytest.mark.parametrize(("lag", "updates", "steps_late"), [(2, 1, 2), (3, 1, 3), (4, 2, 2), (5, 2, 2)])
def test_no_token_is_older_than_allowed(lag: int, updates: int, steps_late: int) -> None:
    trained, _, _ = train(12, lag=lag, updates=updates, more=PER_STEP)
    lags = []
    for step, trees in enumerate(trained):
        for tree in trees:
            versions = [version for node in tree.nodes[1:] for version in node.versions]
            assert len(versions) == tree.unique_tokens
            lags.append(step * updates - min(versions))
    assert 0 < max(lags) <= steps_late * updates <= lag
    if steps_late == 2:  # twice as many trees as a step trains: some have to wait as long as they may
        assert max(lags) == steps_late * updates


def test_a_token_is_of_the_weights_that_sampled_it() -> None:
    """Versions never fall along a trajectory, and some trajectory was written by two."""
    trained, _, _ = train(6)
    mixed = 0
    for tree in (tree for trees in trained for tree in trees):
        for leaf in tree.leaves():
            versions = [v for node in tree.path(leaf.index)[1:] for v in tree.nodes[node].versions]
            assert versions == sorted(versions)
            mixed += len(set(versions)) > 1
    assert mixed > 0


def test_what_was_drawn_is_kept_or_counted_as_dropped() -> None:
    _, in_flight, ends = train(6)
    trained, _, _ = train(6)
    drawn = sum(step.drawn for steps in ends for step in steps)
    dropped = sum(step.dropped for steps in ends for step in steps)
    in_trees = sum(tree.sampled_tokens for trees in trained for tree in trees)
    assert drawn - dropped == in_trees + sum(tree.tokens for tree in in_flight.trees)
    assert 0 < dropped < drawn


class Dictated(SlowWriter):
    """Texts of given lengths, by prompt and seed order of the request."""

    lengths: dict[tuple[int, int], int]

    def write(self, request):
        index, number = request.request_id
        length = self.lengths[index, number] - (len(request.prefix) - 2)
        rollout = super().write(replace(request, max_new_tokens=100))
        tokens = (ord("a"),) * length
        return replace(rollout, tokens=tokens, logprobs=(-0.5,) * length, finish_reason="eos")


def test_the_moment_of_closing_by_hand() -> None:
    """Trees of two chains each: a step trains two, and three are in flight."""
    source = Dictated(3)
    in_flight = TreesInFlight(2, 3, max_policy_lag=2, updates_per_step=1)
    prompts = map(str, range(100))

    def close(version: int, lengths: dict[tuple[int, int], int]) -> StepOfTrees:
        source.lengths = lengths
        closing = in_flight.begin(list(islice(prompts, in_flight.missing)), version, version)
        step = grow_share(in_flight, closing, source, TWO_CHAINS, max_new_tokens=100)
        in_flight.end(step.carried)
        return step

    assert in_flight.missing == 3 + 1  # one can take the place of the first that is complete
    step = close(0, {(0, 0): 3, (0, 1): 9, (1, 0): 5, (1, 1): 5, (2, 0): 7, (2, 1): 6, (3, 0): 10, (3, 1): 10})
    # Trees end at ticks 9, 5 and 7. The fourth starts at 5, and the step closes at 7 with the second and the third.
    assert (step.tick, sorted(step.closed)) == (7, [1, 2])
    first, fourth = in_flight.trees
    assert (first.clock, [(len(one.tokens), one.finish_reason) for one in first.sampled]) == (
        7,
        [(3, "eos"), (7, None)],
    )
    assert (fourth.clock, [(len(one.tokens), one.finish_reason) for one in fourth.sampled]) == (2, [(2, None)] * 2)
    assert step.drawn - step.dropped == 3 + 7 + 10 + 13 + 4

    # A new tree is complete at tick 1, where the last one starts, and the first at 2.
    assert in_flight.missing == 2
    step = close(1, {(0, 1): 9, (1, 0): 10, (1, 1): 10, (2, 0): 1, (2, 1): 1, (3, 0): 20, (3, 1): 20})
    assert (step.tick, sorted(step.closed)) == (2, [0, 2])
    assert [(tree.version, tree.clock) for tree in in_flight.trees] == [(0, 4), (1, 1)]

    # The fourth tree would be too old in the next step: this one waits for it until tick 6, although two others are
    # complete at tick 1. One of these is left, as is the last, started there.
    step = close(2, {(0, 0): 10, (0, 1): 10, (1, 0): 2, (1, 1): 2, (2, 0): 1, (2, 1): 1, (3, 0): 20, (3, 1): 20})
    assert (step.tick, sorted(step.closed)) == (6, [0, 1])
    complete, last = in_flight.trees
    assert [one.finish_reason for one in complete.sampled] == ["eos", "eos"]
    assert (last.clock, [len(one.tokens) for one in last.sampled]) == (5, [5, 5])

    # The complete one counts at tick 0.
    step = close(3, {(1, 0): 9, (1, 1): 8, (2, 0): 50, (2, 1): 50, (3, 0): 50, (3, 1): 50})
    assert (step.tick, sorted(step.closed)) == (4, [0, 1])
    assert [tree.clock for tree in in_flight.trees] == [4, 4]


def test_one_tree_more_can_be_trained_in_the_next_step() -> None:
    """With as many trees left as a step trains, the smallest lag makes each step train all that are left."""
    trained, _, _ = train(6, more=1, lag=1)
    lags = {step - min(node.versions) for step, trees in enumerate(trained) for t in trees for node in t.nodes[1:]}
    assert lags == {0, 1}


@pytest.mark.parametrize(
    ("more", "lag", "updates", "least"), [(2, 1, 1, 2), (2, 3, 2, 4), (5, 2, 1, 2), (6, 2, 1, 3), (1, 1, 1, 1)]
)
def test_a_lag_that_cannot_be_kept_is_refused(more: int, lag: int, updates: int, least: int) -> None:
    if lag >= least:
        TreesInFlight(4, 4 + more, lag, updates)
        return
    with pytest.raises(ValueError, match=f"{4 + more} trees in flight need a policy lag of {least}, not {lag}"):
        TreesInFlight(4, 4 + more, lag, updates)


def test_an_engine_that_dies_loses_and_repeats_nothing() -> None:
    """It starts all over again and again, with trees of former steps in flight."""
    trained, in_flight, _ = train(5, restarts=False)
    again, still_in_flight, _ = train(5, order=3, restarts=True)
    assert flat(again) == flat(trained)
    assert still_in_flight.trees == in_flight.trees


def test_a_sampler_that_cuts_too_early_is_named() -> None:
    class Hasty(Dictated):
        def cut(self, at_least):
            return [replace(one, tokens=(), logprobs=()) for one in super().cut(at_least)]

    source = Hasty(0)
    source.lengths = {(0, 0): 50, (0, 1): 3, (1, 0): 3, (1, 1): 5}
    in_flight = TreesInFlight(1, 2, 3, 1)
    closing = in_flight.begin(["0", "1"], 0, 0)
    with pytest.raises(RuntimeError, match=r"trajectory 0: the sampler cut it off after 0 tokens; 5 were asked for"):
        grow_share(in_flight, closing, source, TWO_CHAINS, max_new_tokens=100)


def test_tokens_of_a_carried_tree() -> None:
    _, in_flight, _ = train(2)
    tree = in_flight.trees[0]
    assert isinstance(tree, CarriedTree)
    assert tree.tokens == sum(len(one.tokens) for one in tree.sampled) > 0
