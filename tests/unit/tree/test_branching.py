"""Where a tree branches is the sampler; a strategy that is off by one candidate is another algorithm.

Not exercised: whether branching by IB-Score pays off in training (that needs a model).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from growth_toys import SAMPLER
from strategies import IB, add, hand_tree, step

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import SamplerConfig
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


def sampler(name: str = "ib", **changes: int | None) -> SamplerConfig:
    return replace(SAMPLER, name=name, **changes)


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


def test_per_draw_takes_the_highest_value_of_a_draw() -> None:
    per_draw = replace(IB, selection="per_draw")

    def order(tree: Tree, **in_flight: int) -> list[int]:
        strategy = make_strategy(sampler(branch_points=5), per_draw, 100)
        flying = {int(node[1:]): count for node, count in in_flight.items()}
        return [point.node for point in strategy.next_round(tree, 1, np.random.default_rng(0), flying)]

    # J = 1 - pi of its child, u = 1 - pi: the root (0.5, 1 - 2 * 0.5, two draws) 0, nodes 1 and 4 0.5 * 0.5,
    # 2 0.2 * 0.2, 5 0.8 * 0.8.
    assert order(chains()) == [5, 1, 4, 2, ROOT]
    # One in flight halves; two make a third of 0.64 below 0.25.
    assert order(chains(), n1=1) == [5, 4, 1, 2, ROOT]
    assert order(chains(), n5=2) == [1, 4, 5, 2, ROOT]
    # Values of 0 come last, fewest draws first, then the oldest: nodes 1 and 2 are certain, the root is drawn twice.
    tree = Tree("p", (1,))
    add(tree, ROOT, [step([2], 1.0), step([3], 1.0), step([4], 1.0)], 1.0)
    add(tree, ROOT, [step([2], 1.0), step([3], 1.0), step([4], 1.0)], 1.0)
    add(tree, 1, [step([5], 0.5)], 1.0)
    assert [tree.nodes[node].draws for node in (1, 2)] == [2, 2]
    assert order(tree) == [ROOT, 2, 1]
    assert order(tree, n0=1) == [2, ROOT, 1]


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


@pytest.mark.parametrize("name", ["ib", "random"])
def test_the_root_can_be_left_out_while_there_is_another_candidate(name: str) -> None:
    config = sampler(name, branch_points=10, branch_root=False)
    assert {node for node, _ in choose(chains(), config)} == {1, 2, 4, 5}
    single = Tree("p", (1,))
    add(single, ROOT, [step([2], 0.5)], 1.0)
    assert choose(single, config) == [(ROOT, 10)]


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


def forks(tree: Tree, config: SamplerConfig, round: int = 1, max_new_tokens: int = 100):
    points = make_strategy(config, IB, max_new_tokens).next_round(tree, round, np.random.default_rng(0))
    return [(point.node, point.offset, point.rollouts) for point in points]


def two_chains() -> Tree:
    """Probabilities of the tokens in brackets: 1 (0.9 0.2) -> 2 (0.6 0.8) and 3 (0.5 0.15) -> 4 (0.1)."""
    tree = Tree("p", (1,))
    for reward, chain in ((1.0, [[0.9, 0.2], [0.6, 0.8]]), (0.0, [[0.5, 0.15], [0.1]])):
        steps = [(list(range(len(p))), list(np.log(p))) for p in chain]
        steps[0] = ([int(10 * reward), 1], steps[0][1])
        add(tree, ROOT, steps, reward)
    return tree


def test_entropy_forks_before_the_most_surprising_tokens_of_each_chain() -> None:
    # Chain 1: 0.2 is node 1 at 1, then 0.6, the first token of node 2: the place is the whole node 1. Chain 3: 0.1 is
    # the first of node 4: node 3 as a whole, then 0.15: node 3 at 1. 0.9 and 0.5 follow the prompt and are masked.
    # The two least likely tokens are both of chain 3, yet each chain forks once.
    config = sampler("entropy", initial_rollouts=2, rounds=2, branch_points=2, rollouts_per_branch=2)
    assert forks(two_chains(), config) == [(3, None, 2), (1, 1, 2)]
    config = sampler("entropy", initial_rollouts=2, rounds=2, branch_points=4)
    assert forks(two_chains(), config) == [(3, None, 1), (3, 1, 1), (1, 1, 1), (1, None, 1)]
    assert forks(two_chains(), config, round=2) == []


def test_entropy_makes_up_for_a_chain_without_tokens() -> None:
    tree = two_chains()
    add(tree, ROOT, [step([7], 0.001)], 1.0)  # its only token follows the prompt
    config = sampler("entropy", initial_rollouts=3, rounds=2, branch_points=3)
    assert forks(tree, config) == [(3, None, 1), (1, 1, 1), (3, 1, 1)]
    single = Tree("p", (1,))
    add(single, ROOT, [step([2], 0.5)], 1.0)
    assert forks(single, sampler("entropy", initial_rollouts=1, rounds=2, branch_points=2)) == [(ROOT, None, 2)]


def test_entropy_does_not_fork_twice_at_a_place() -> None:
    tree = two_chains()
    (inside,) = tree.split([(1, 1)])  # nodes: 1 (0.9) -> 2 (0.2) -> 3 (0.6 0.8), 4 (0.5 0.15) -> 5 (0.1)
    add(tree, inside, [step([9], 0.01)], 1.0, round=1)
    config = sampler("entropy", initial_rollouts=1, rounds=3, branch_points=9)
    assert forks(tree, config, round=2) == [(4, None, 3), (4, 1, 2), (2, None, 2), (3, 1, 2)]


def test_entropy_leaves_room_under_the_length_limit() -> None:
    config = sampler("entropy", initial_rollouts=2, rounds=2, branch_points=4, min_new_tokens=2)
    # Prefixes of 1 token at most: the second tokens.
    assert forks(two_chains(), config, max_new_tokens=3) == [(3, 1, 2), (1, 1, 2)]


def segments() -> Tree:
    """Root; 1 -> 2 -> 3 and 4 -> 5 and 6, segments of one token; 4 was drawn twice, 6 is a leaf of depth 1."""
    tree = Tree("p", (1,))
    add(tree, ROOT, [step([2], 0.5), step([3], 0.5), step([4], 0.5)], 1.0)
    add(tree, ROOT, [step([5], 0.5), step([6], 0.5)], 0.0)
    add(tree, ROOT, [step([5], 0.5), step([6], 0.5)], 0.0)
    add(tree, ROOT, [step([7], 0.5)], 1.0)
    return tree


def test_fixed_width_takes_a_depth_and_then_random_segments() -> None:
    config = sampler("fixed_width", rounds=4, branch_points=2, segment_tokens=1)
    assert sorted(choose(segments(), config)) == [(1, 1), (4, 1)]
    for seed in range(20):
        (first, _), (second, _) = choose(segments(), config, round=2, seed=seed)
        assert first == 2  # the only segment of depth 2 that goes on
        assert second in {ROOT, 1, 4}
        assert len(choose(segments(), config, round=3, seed=seed)) == 2  # none at that depth
    seconds = {choose(segments(), config, round=2, seed=seed)[1] for seed in range(50)}
    assert seconds == {(ROOT, 1), (1, 1), (4, 1)}


def test_full_branches_every_segment_of_a_level() -> None:
    # 4 x 3 x 3 = 36: level 1 gets 8 rollouts, level 2 gets 24.
    config = sampler("full", rounds=3, rollouts_per_branch=2, segment_tokens=1)
    assert config.trajectories_per_prompt == 36
    # Segments 1 and 4, 4 drawn twice; the leaf 6 leaves its two to them: 8 = 3 + 3 + 2 over 1, 4, 4.
    assert choose(segments(), config, round=1) == [(1, 3), (4, 5)]
    assert choose(segments(), config, round=2) == [(2, 24)]
    assert choose(segments(), config, round=2, max_new_tokens=2) == [(1, 8), (4, 16)]  # no room at level 2
    assert choose(segments(), config, round=3) == []
