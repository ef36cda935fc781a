"""The order of problems: every problem once an epoch, no batch with a repeat, and a restart changes nothing.

A cursor that is off by a batch after a restart trains on some problems twice and on others never, and no metric
shows it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.data.loader import PromptLoader
from nemo_ibtpo.data.problems import Problem, problems_digest


def problems(count: int, **changes: Any) -> list[Problem]:
    ordinary = {"answer": "1", "verifier": "exact", "metadata": {}, "prompt_tokens": (1, 2)}
    return [Problem(problem_id=str(i), question=f"q{i}", **ordinary | changes) for i in range(count)]


def ids(batch: list[Problem]) -> list[int]:
    return [int(problem.problem_id) for problem in batch]


@given(size=st.integers(1, 12), batch=st.integers(1, 15), shuffle=st.booleans(), seed=st.integers(0, 5))
def test_epochs_are_permutations_and_batches_hold_no_repeats(size: int, batch: int, shuffle: bool, seed: int) -> None:
    loader = PromptLoader(problems(size), shuffle, seed)
    batches = [ids(loader.next(batch)) for _ in range(3 * size)]
    assert all(len(drawn) == batch for drawn in batches)
    if batch <= size:
        assert all(len(set(drawn)) == batch for drawn in batches)
    drawn = [index for drawn in batches for index in drawn]
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[start : start + size]) == list(range(size))


@given(size=st.integers(2, 12), batch=st.integers(1, 6), shuffle=st.booleans(), data=st.data())
def test_a_step_may_go_on_drawing_without_repeats(size: int, batch: int, shuffle: bool, data: st.DataObject) -> None:
    """Also across the border of an epoch, whose problems all come once, and after a restart in between steps."""
    loader, drawn = PromptLoader(problems(size), shuffle, 3), []
    for _ in range(2 * size):
        step = ids(loader.next(min(batch, size - 1)))
        while (missing := data.draw(st.integers(0, size - len(step)))) > 0:
            step += ids(loader.next(missing, apart_from=[str(index) for index in step]))
        assert len(set(step)) == len(step)
        drawn += step
        resumed = PromptLoader(problems(size), shuffle, 3)
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        loader = resumed
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[start : start + size]) == list(range(size))


@given(
    size=st.integers(1, 12),
    counts=st.lists(st.integers(1, 15), max_size=8),
    more=st.lists(st.integers(1, 15), min_size=1, max_size=8),
    shuffle=st.booleans(),
)
def test_a_restart_changes_nothing(size: int, counts: list[int], more: list[int], shuffle: bool) -> None:
    loader = PromptLoader(problems(size), shuffle, seed=3)
    for count in counts:
        loader.next(count)
    resumed = PromptLoader(problems(size), shuffle, seed=3)
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert [loader.next(count) for count in more] == [resumed.next(count) for count in more]


def test_orders_differ_between_epochs_and_seeds() -> None:
    loader = PromptLoader(problems(30), shuffle=True, seed=0)
    first, second = ids(loader.next(30)), ids(loader.next(30))
    other = ids(PromptLoader(problems(30), shuffle=True, seed=1).next(30))
    assert len({tuple(first), tuple(second), tuple(other), tuple(range(30))}) == 4


def test_without_shuffling_the_order_is_the_data_sets() -> None:
    loader = PromptLoader(problems(4), shuffle=False, seed=0)
    assert [ids(loader.next(3)) for _ in range(3)] == [[0, 1, 2], [3, 0, 1], [2, 3, 0]]


def test_the_digest_sees_every_field() -> None:
    changes = [{}, {"answer": "2"}, {"verifier": "math"}, {"metadata": {"a": 1}}, {"prompt_tokens": (1, 3)}]
    digests = [problems_digest(problems(2, **change)) for change in changes]
    digests += [problems_digest(problems(3)), problems_digest(problems(2)[::-1])]
    assert len(set(digests)) == len(digests)
    assert problems_digest(problems(2)) == digests[0]


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (PromptLoader(problems(3, answer="2"), True, 0), "another training set"),
        (PromptLoader(problems(3), True, 1), "seed=1, this run with seed=0; resume with seed=1"),
        (PromptLoader(problems(3), False, 0), "shuffle=False, this run with shuffle=True"),
    ],
)
def test_a_state_of_other_problems_or_another_order_is_refused(other: PromptLoader, line: str) -> None:
    with pytest.raises(UserError, match=line):
        PromptLoader(problems(3), True, 0).load_state_dict(other.state_dict())


def test_bad_calls() -> None:
    with pytest.raises(ValueError, match="no problems"):
        PromptLoader([], True, 0)
    with pytest.raises(ValueError, match="at least one problem"):
        PromptLoader(problems(1), True, 0).next(0)
