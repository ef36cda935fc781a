"""Refill: a step trains on its number of mixed groups if the bound allows it, and never on a prompt twice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from strategies import add, step

from nemo_ibtpo.data.loader import PromptLoader
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.training.refill import further_problems, to_train
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


def problem(name: str) -> Problem:
    return Problem(name, name, (1,), "1", "exact", {})


def sampled(name: str) -> Tree:
    """The tree of a prompt whose capital letter says that its rewards differ."""
    tree = Tree(name, (1,))
    for token, reward in ((2, 0.0), (3, float(name.isupper()))):
        add(tree, ROOT, [step([token], 0.5)], reward)
    return tree


@pytest.mark.parametrize(
    ("order", "refill", "drawn", "trained"),
    [
        ("aBcDEFGh", 0, "aBc", "aBc"),  # off
        ("aBcDEFGh", 9, "aBcDE", "BDE"),
        ("aBcdEFGh", 9, "aBcdEF", "BEF"),  # a second round
        ("abcdefGH", 2, "abcde", "cde"),  # the bound: the last equal groups stay
        ("abcD", 9, "abcD", "bcD"),  # no prompt is left that the step has not sampled
        ("ABCDEF", 9, "ABC", "ABC"),
    ],
)
def test_by_hand(order: str, refill: int, drawn: str, trained: str) -> None:
    prompts = PromptLoader([problem(name) for name in order], shuffle=False, seed=0)
    trainer = SimpleNamespace(num_prompts_per_step=3, refill=refill)
    problems, trees = prompts.next(3), []
    while problems:
        trees += [sampled(own.problem_id) for own in problems]
        problems = further_problems(trees, prompts, trainer)
    assert "".join(tree.prompt_id for tree in trees) == drawn
    assert "".join(tree.prompt_id for tree in to_train(trees, 3)) == trained
    # The next step goes on behind what was drawn.
    assert prompts.next(1)[0].problem_id == (order + order)[len(drawn)]
