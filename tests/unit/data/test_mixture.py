"""Several data sets by weight: shares, no repeats in a step, a cursor; and entries of a mixture that are refused.

Hand-checked: with weights 3 and 1 every fourth prompt is of the second set.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from data_configs import data_config
from hypothesis import given
from hypothesis import strategies as st

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.mixtures import training_parts, validation_parts
from nemo_ibtpo.data.loader import Prompts
from nemo_ibtpo.data.mixture import make_prompts
from nemo_ibtpo.data.problems import Problem


def mixture(sizes: dict[str, int], weights: dict[str, float], seed: int = 0) -> Prompts:
    parts = {
        name: [Problem(f"{name}{i}", f"{name}{i}", "1", "exact", {}, (1,)) for i in range(size)]
        for name, size in sizes.items()
    }
    return make_prompts(parts, weights, shuffle=True, seed=seed)


def drawn(prompts: Prompts, *counts: int) -> list[str]:
    return [problem.problem_id for count in counts for problem in prompts.next(count)]


def test_shares_by_weight() -> None:
    weights = {"a": 3.0, "b": 1.0}
    ids = drawn(mixture({"a": 10, "b": 4}, weights), 8, 8, 8)
    assert "".join(name[0] for name in ids) == "aaba" * 6
    assert Counter(name for name in ids if name[0] == "a").most_common()[-1][1] == 1  # 18 draws of 10 problems
    assert sorted(ids)[:1] != ids[:1] or ids != drawn(mixture({"a": 10, "b": 4}, weights, seed=1), 24)


@given(
    sizes=st.tuples(st.integers(3, 9), st.integers(3, 9), st.integers(3, 9)),
    weights=st.tuples(*[st.floats(0.1, 5.0)] * 3),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    more=st.lists(st.integers(1, 9), min_size=1, max_size=8),
)
def test_no_repeats_in_a_step_and_a_restart_changes_nothing(
    sizes: tuple[int, ...], weights: tuple[float, ...], counts: list[int], more: list[int]
) -> None:
    named, by_weight = dict(zip("abc", sizes, strict=True)), dict(zip("abc", weights, strict=True))
    prompts = mixture(named, by_weight)
    for count in counts:
        step = drawn(prompts, count)
        further = min(3, len(prompts) - len(step))
        if further > 0:
            step += [problem.problem_id for problem in prompts.next(further, apart_from=step)]
        assert len(set(step)) == len(step)
        assert [prompts.problem(problem_id).problem_id for problem_id in step] == step
    resumed = mixture(named, by_weight)
    resumed.load_state_dict(json.loads(json.dumps(prompts.state_dict())))
    assert drawn(prompts, *more) == drawn(resumed, *more)


def test_a_cursor_of_other_weights_is_refused() -> None:
    saved = mixture({"a": 3, "b": 3}, {"a": 1, "b": 1}).state_dict()
    with pytest.raises(UserError, match=r"by the weights .* resume with those of the checkpoint"):
        mixture({"a": 3, "b": 3}, {"a": 1, "b": 2}).load_state_dict(saved)
    assert mixture({"a": 3, "b": 3}, {"a": 1, "b": 1}).digest != mixture({"a": 6}, {"a": 1}).digest


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "b"}, "data.mixture.b.weight=null must be a number above 0"),
        ({"weight": 0}, "data.mixture.b.weight=0 must be a number above 0"),
        ({"weight": -1.0}, "data.mixture.b.weight=-1.0 must be a number above 0"),
        ({"weight": "much"}, "data.mixture.b.weight=much must be a number above 0"),
        ({"weight": 1, "pth": "b"}, "unknown key 'data.mixture.b.pth' (did you mean 'path'?)"),
        ({"weight": 1, "source": "sql"}, "data.mixture.b.source='sql': Input should be"),
        ({"weight": 1, "size": 0}, "data.mixture.b.size=0: Input should be greater than 0"),
        ("b.jsonl", "data.mixture.b='b.jsonl' is no mapping of the keys that differ"),
    ],
)
def test_entries_that_are_refused(entry: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        training_parts(data_config(mixture={"a": {"weight": 1}, "b": entry}))
    assert message in str(caught.value)


def test_an_entry_is_the_common_data_set_with_changes() -> None:
    data = data_config(mixture={"a": {"weight": 2}, "b": {"weight": 1, "path": "b", "verifier": "math"}})
    first, second = training_parts(data)
    assert first.dataset == data.train and (first.weight, second.weight) == (2.0, 1.0)
    assert (second.key, second.dataset.path, second.dataset.verifier) == ("data.mixture.b", "b", "math")
    (only,) = validation_parts(data)
    assert only.dataset == data.validation and only.name == ""
