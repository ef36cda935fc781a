"""Where a tree branches is the sampler; a strategy that is off by one candidate is another algorithm.

Not exercised: whether branching by IB-Score pays off in training (that needs a model).
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from strategies import IB, add, hand_tree, step

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import SamplerConfig
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.tree import ROOT, Tree


def sampler(name: str = "ib", **changes: int) -> SamplerConfig:
    sizes = {"initial_rollouts": 4, "rounds": 9, "branch_points": 1, "rollouts_per_branch": 1}
    rest = {"min_new_tokens": 1, "max_trees_in_flight": 8}
    return SamplerConfig(name=name, **{**sizes, **rest, **changes})


def choose(tree: Tree, config: SamplerConfig, round: int = 1, seed: int = 0, max_new_tokens: int = 100):
    strategy = make_strategy(config, IB, max_new_tokens)
    return [(point.node, point.rollouts) for point in strategy.next_round(tree, round, np.random.default_rng(seed))]


@pytest.mark.parametrize("name", ["ib", "random"])
def test_rounds_of_a_tree(name: str) -> None:
    config = sampler(name, rollouts_per_branch=2, rounds=3)
    assert choose(Tree("p", (1,)), config, round=0) == [(ROOT, 4)]
    assert [rollouts for _, rollouts in choose(hand_tree(), config, round=2)] == [2]
    assert choose(hand_tree(), config, round=3) == []
    assert config.trajectories_per_prompt == 4 + 2 * 2


def test_independent_samples_all_at_once() -> None:
    config = sampler("independent", initial_rollouts=12, rounds=1)
    assert choose(Tree("p", (1,)), config, round=0) == [(ROOT, 12)]
    assert choose(hand_tree(), config, round=1) == []


def test_ib_takes_the_highest_scores() -> None:
    # test_ib_score.py: root -0.2, a -0.9; the other nodes are leaves.
    assert choose(hand_tree(), sampler()) == [(ROOT, 1)]
    assert choose(hand_tree(), sampler(branch_points=2, rollouts_per_branch=3)) == [(ROOT, 3), (1, 3)]


def chains() -> Tree:
    """Root; two chains of two steps and a leaf each, alike but for the last step's confidence, all right."""
    tree = Tree("p", (1,))
    add(tree, ROOT, [step([2], 0.5), step([3], 0.5), step([4], 0.8)], 1.0)
    add(tree, ROOT, [step([5], 0.5), step([6], 0.5), step([7], 0.2)], 1.0)
    return tree


def test_low_confidence_attracts_and_ties_go_to_the_oldest() -> None:
    # All right: eta1 = -1/5, so a node scores -1.2 * pi of its child, at the root of both. Nodes are
    # 0 root (-0.6), 1 (-0.6), 2 (-1.2 * 0.8), 3 leaf, 4 (-0.6), 5 (-1.2 * 0.2), 6 leaf.
    order = [node for node, _ in choose(chains(), sampler(branch_points=5))]
    assert order == [5, ROOT, 1, 4, 2]


@pytest.mark.parametrize("name", ["ib", "random"])
def test_candidates_have_room_under_the_length_limit(name: str) -> None:
    def candidates(min_new_tokens: int) -> set[int]:
        config = sampler(name, branch_points=10, min_new_tokens=min_new_tokens)
        return {node for node, _ in choose(chains(), config, max_new_tokens=5)}

    # Depths: root 0, nodes 1 and 4 one token, 2 and 5 two tokens; the leaves (3, 6) never.
    assert candidates(3) == {ROOT, 1, 2, 4, 5}
    assert candidates(4) == {ROOT, 1, 4}
    assert candidates(5) == {ROOT}


def test_too_few_candidates_share_the_round() -> None:
    # Five candidates asked for, two there: ten rollouts, the first taking one more if they do not divide.
    assert choose(hand_tree(), sampler(branch_points=5, rollouts_per_branch=2)) == [(ROOT, 5), (1, 5)]
    assert choose(hand_tree(), sampler(branch_points=3, rollouts_per_branch=1)) == [(ROOT, 2), (1, 1)]
    single = Tree("p", (1,))
    add(single, ROOT, [step([2], 0.5)], 1.0)
    assert choose(single, sampler(branch_points=3)) == [(ROOT, 3)]


def test_random_is_even_over_candidates_and_repeats_with_its_generator() -> None:
    tree, config = chains(), sampler("random", branch_points=2)
    draws = [choose(tree, config, seed=seed) for seed in range(500)]
    assert all(len({node for node, _ in points}) == 2 for points in draws)
    counts = Counter(node for points in draws for node, _ in points)
    assert set(counts) == {ROOT, 1, 2, 4, 5}
    # 1,000 nodes over 5 candidates: 200 each, standard deviation below 13.
    assert all(abs(count - 200) < 60 for count in counts.values())
    assert draws == [choose(tree, config, seed=seed) for seed in range(500)]


def test_impossible_settings_are_refused() -> None:
    for min_new_tokens in (0, 101):
        with pytest.raises(UserError, match=r"sampler.min_new_tokens=.* between 1 and rollout.max_new_tokens"):
            make_strategy(sampler(min_new_tokens=min_new_tokens), IB, 100)
    with pytest.raises(UserError, match="'beam' is unknown; it must be ib, random or independent"):
        make_strategy(sampler("beam"), IB, 100)
