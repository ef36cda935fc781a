"""The IB-Score decides where samples go, and its covariance is the diagnostic that the method reports.

Arithmetic by hand on one tree, and the identities of the formula on random ones. Not exercised: what branching
makes of the scores (test_branching.py).
"""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given
from strategies import IB, IB_CHILDREN_MEAN, add, hand_tree, step, trajectories, trees

from nemo_ibtpo.config.schema import IBScoreConfig
from nemo_ibtpo.tree.ib_score import (
    draws_at,
    eta1,
    eta1_of_draws,
    eta2,
    ib_scores,
    ib_scores_in_flight,
    new_probability,
    tree_statistics,
    values_per_draw,
)
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree

nan = math.nan


def test_scores_by_hand() -> None:
    tree = hand_tree()
    # 1 + 1/beta = 1.2. Root 2/5, a 2/3: eta1(a) = 5/3 - 1.2 = 7/15. b and e: 1 / (2/3) - 1.2 = 0.3.
    np.testing.assert_allclose(eta1(tree, IB), [nan, 7 / 15, 0.3, -1.2, -1.2, 0.3])
    np.testing.assert_allclose(eta2(tree, IB), [nan, 0.5, 0.8, 0.6, 0.25, 0.1])
    # The score compares with the mean of the draws at the parent: 1/3 at the root, where a and d were drawn twice.
    np.testing.assert_allclose(eta1_of_draws(tree, IB), [nan, 2 - 1.2, 0.3, -1.2, -1.2, 0.3])
    # Root: 6/4 * (2 * 0.8 * 0.5 - 2 * 1.2 * 0.25) = 1.5 * 0.2 = 0.3
    # a:    6/3 * (0.3 * 0.8 - 1.2 * 0.6 + 0.3 * 0.1) = 2 * -0.45 = -0.9
    np.testing.assert_allclose(ib_scores(tree, IB), [0.3, -0.9, nan, nan, nan, nan])
    assert draws_at(tree).tolist() == [4, 3, 0, 0, 0, 0]


def test_step_probability_as_a_product() -> None:
    product = eta2(hand_tree(), replace(IB, step_probability="product"))
    np.testing.assert_allclose(product, [nan, 0.5**2, 0.8, 0.4 * 0.9, 0.25, 0.1])


def test_statistics_by_hand() -> None:
    mixed, alike = hand_tree(), Tree("alike", (1,))
    add(alike, ROOT, [step([1], 0.5)], 1.0)
    # Root: eta1 0.8, 0.8, -1.2, -1.2 has mean -0.2; eta2 has mean 0.375; its product's mean is 0.1 / 2 = 0.05;
    # Cov = 0.05 + 0.2 * 0.375. a: mean -0.45 / 3 = -0.15; Cov = -0.15 + 0.2 * 0.5.
    cov = (0.05 + 0.2 * 0.375, -0.15 + 0.2 * 0.5)
    # alike: its root has one draw of one child, IB = -(1 + beta) / beta * pi = -1.2 * 0.5, and no Cov.
    statistics = tree_statistics([mixed, alike], IB)
    expected = {
        "eff_rate": 1 / 2,
        "avg_rate": (2 + 1) / (5 + 1),
        "ib_score": (0.3 - 0.9 - 0.6) / 3,
        "cov": sum(cov) / 2,
        "trajectories_per_prompt": (5 + 1) / 2,
        "sampled_tokens_per_prompt": (10 + 1) / 2,  # a (2 tokens) and d (1) were drawn twice
        "unique_tokens_per_prompt": (7 + 1) / 2,
        "duplicated_tokens_per_prompt": (12 + 1) / 2,
    }
    assert statistics.means() == pytest.approx(expected)
    apart = tree_statistics([mixed], IB) + tree_statistics([alike], IB)
    assert astuple(apart) == pytest.approx(astuple(statistics))
    assert math.isnan(tree_statistics([alike], IB).means()["cov"])


def test_limits() -> None:
    def scored(rewards: list[float]) -> tuple[Tree, np.ndarray]:
        tree = Tree("p", (1,))
        for token, reward in enumerate(rewards):
            add(tree, ROOT, [step([token], 0.5)], reward)
        return tree, ib_scores(tree, IB)

    # All wrong, p_hat 0: the ratio is 1, so eta1 = -1/beta, and the same when all are right.
    for rewards in ([0.0, 0.0, 0.0], [1.0, 1.0]):
        tree, scores = scored(rewards)
        np.testing.assert_allclose(eta1(tree, IB)[1:], -1 / 5)
        assert scores[ROOT] == pytest.approx(6 * -1 / 5 * 0.5)
    # One child: only its confidence counts, IB = -(1 + beta) / beta * pi.
    assert scored([1.0])[1][ROOT] == pytest.approx(-6 / 5 * 0.5)
    # A node whose leaves are all wrong in a tree that has a right one.
    tree, _ = scored([1.0])
    add(tree, ROOT, [step([7], 0.5), step([8], 0.25)], 0.0)
    np.testing.assert_allclose(eta1(tree, IB)[2:], [0 / 0.5 - 1.2, 1 - 1.2])


@given(trees())
def test_scores_equal_the_formula_over_single_draws(tree: Tree) -> None:
    paths = trajectories(tree)

    def p_hat(index: int) -> float:
        rewards = [tree.nodes[path[-1]].reward for path in paths if index in path]
        return sum(rewards) / len(rewards)

    scores = ib_scores(tree, IB)
    for node in tree.nodes:
        terms = []
        drawn = [p_hat(child) for child in node.children for _ in range(tree.nodes[child].draws)]
        for child in (tree.nodes[i] for i in node.children):
            ratio = p_hat(child.index) * len(drawn) / sum(drawn) if sum(drawn) > 0 else 1.0
            pi = math.prod(math.exp(lp) for lp in child.logprobs) ** (1 / len(child.logprobs))
            terms += [(ratio - (1 + 1 / IB.beta)) * pi] * child.draws
        if terms:
            expected = (1 + IB.beta) / len(terms) * sum(terms)
            assert scores[node.index] == pytest.approx(expected, rel=1e-9, abs=1e-12)
        else:
            assert math.isnan(scores[node.index])


@pytest.mark.parametrize("config", [IB, IB_CHILDREN_MEAN], ids=lambda config: config.value_estimator)
@given(tree=trees())
def test_expected_gain_and_covariance_identities(tree: Tree, config: IBScoreConfig) -> None:
    """E[eta1] = -1/beta, hence beta * E[eta1 eta2] = beta * Cov(eta1, eta2) - E[pi], at every node."""
    beta = config.beta
    gain, confidence = eta1_of_draws(tree, config), eta2(tree, config)
    scores = ib_scores(tree, config)
    covariances = []
    for node in tree.nodes:
        drawn = [child for child in node.children for _ in range(tree.nodes[child].draws)]
        if not drawn:
            continue
        assert gain[drawn].mean() == pytest.approx(-1 / beta)
        cov = np.cov(gain[drawn], confidence[drawn], ddof=0)[0, 1]
        j_minus_1 = beta * scores[node.index] / (1 + beta)
        assert j_minus_1 == pytest.approx(beta * cov - confidence[drawn].mean())
        covariances += [cov] if len(drawn) >= 2 else []
    if covariances:
        mean = tree_statistics([tree], config).means()["cov"]
        assert mean == pytest.approx(np.mean(covariances), abs=1e-12)


def test_value_of_a_draw_by_hand() -> None:
    tree, none = hand_tree(), np.zeros(6, dtype=np.int64)
    # A draw at the root repeats a (0.5 * 0.5) or d (0.25): u = 0.5. At a it repeats b 0.8 or c 0.36 or e 0.1: 1.26 >
    # 1, which real probabilities never are; u = 0.
    np.testing.assert_allclose(new_probability(tree), [0.5, 0.0, 1.0, 1.0, 1.0, 1.0])
    # J = 1 + 5/6 IB: root 1 + 0.25 = 5/4; a 1 - 0.75 = 0.25. B: 4 and 3.
    expected = [5 / 4 * 0.5 / 4, 0.0, nan, nan, nan, nan]
    np.testing.assert_allclose(values_per_draw(tree, IB, none), expected)
    # Two sequences in flight at the root are draws.
    in_flight = np.array([2, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(values_per_draw(tree, IB, in_flight)[ROOT], 5 / 4 * 0.5 / 6)
    # In the paper's mean a draw in flight has ratio 1 and probability 1, so a score of -1.2: (4 * 0.3 - 2.4) / 6.
    np.testing.assert_allclose(ib_scores_in_flight(tree, IB, in_flight)[:2], [-1.2 / 6, -0.9])


def test_a_negative_objective_is_worth_nothing_however_often_it_was_drawn() -> None:
    tree = Tree("p", (1,))
    add(tree, ROOT, [step([2], 0.9), step([3], 0.5)], 0.0)
    add(tree, ROOT, [step([2], 0.9), step([4], 0.5)], 0.0)
    add(tree, ROOT, [step([5], 0.05)], 1.0)
    # Root 1/3; node 1 is wrong: eta1 -1.2, pi 0.9, twice; node 4: eta1 1.8, pi 0.05.
    ib = 6 / 3 * (2 * -1.2 * 0.9 + 1.8 * 0.05)
    assert ib_scores(tree, IB)[ROOT] == pytest.approx(ib)
    assert 1 + 5 / 6 * ib < 0
    assert values_per_draw(tree, IB, np.zeros(5, dtype=np.int64))[ROOT] == 0.0


def test_an_end_behind_a_blank_line_is_not_counted_twice() -> None:
    """(2) goes on, (2, 9) ends: what begins with 2 has probability 0.5, its end included."""
    tree = Tree("p", (1,))
    add(tree, ROOT, [step([2], 0.5), step([3], 0.4)], 1.0)
    add(tree, ROOT, [([2, 9], [math.log(0.5), math.log(0.6)])], 1.0)
    np.testing.assert_allclose(new_probability(tree)[ROOT], 0.5)
    add(tree, ROOT, [([4, 9], [math.log(0.2), math.log(0.5)])], 1.0)  # (4) alone was never seen to go on
    np.testing.assert_allclose(new_probability(tree)[ROOT], 0.4)
