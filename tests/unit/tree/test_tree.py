"""The tree is what every later number is computed from: a wrong draw count or value bends all advantages.

Checked against a tree computed by hand and against brute force over random trees. Not exercised here: how
trees grow (test_growth.py) and what is computed from values (test_ib_score.py, tests/unit/methods).
"""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import add, hand_tree, places, step, trajectories, trees

from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


def test_insertion_merges_equal_steps_and_counts_free_draws() -> None:
    tree = hand_tree()
    assert [node.tokens for node in tree.nodes] == [(7, 8), (1, 2), (3,), (4, 5), (6,), (9,)]
    assert [node.parent for node in tree.nodes] == [-1, 0, 1, 1, 0, 1]
    assert [node.children for node in tree.nodes] == [[1, 4], [2, 3, 5], [], [], [], []]
    # a: drawn by the first two trajectories; the fifth was forced through it. d: drawn twice.
    assert [node.draws for node in tree.nodes] == [0, 2, 1, 1, 2, 1]
    assert [node.round for node in tree.nodes] == [0, 0, 0, 0, 0, 1]
    assert tree.num_trajectories == 5


def test_a_merged_step_keeps_the_first_sample() -> None:
    tree = Tree("p", (1,))
    first = tree.insert(ROOT, [([5], [-0.5])], "eos", round=0)
    assert tree.insert(ROOT, [([5], [-0.7])], "length", round=3) == first
    node = tree.nodes[first]
    assert (node.logprobs, node.finish_reason, node.round, node.draws) == ((-0.5,), "eos", 0, 2)


def test_a_leaf_never_merges_with_a_step_that_goes_on() -> None:
    tree = Tree("p", (1,))
    ends = tree.insert(ROOT, [step([5], 0.5)], "length", round=0)
    goes_on = tree.nodes[tree.insert(ROOT, [step([5], 0.5), step([6], 0.5)], "eos", round=0)].parent
    assert goes_on != ends
    assert tree.nodes[ROOT].children == [ends, goes_on]
    assert tree.insert(ROOT, [step([5], 0.5)], "eos", round=0) == ends


def test_equal_steps_below_different_parents_stay_apart() -> None:
    tree = Tree("p", (1,))
    tree.insert(ROOT, [step([2], 0.5), step([4], 0.5)], "eos", round=0)
    tree.insert(ROOT, [step([3], 0.5), step([4], 0.5)], "eos", round=0)
    assert [node.draws for node in tree.nodes] == [0, 1, 1, 1, 1]


def test_values_and_counts_by_hand() -> None:
    tree = hand_tree()
    # a: leaves 1, 0, 1. Root: 1, 0, 0, 0, 1, because d counts twice.
    np.testing.assert_allclose(tree.values("leaf_mean"), [2 / 5, 2 / 3, 1, 0, 0, 1])
    # Root: two draws of a with 2/3, two of d with 0; the rollout forced through a does not move it.
    np.testing.assert_allclose(tree.values("children_mean"), [1 / 3, 2 / 3, 1, 0, 0, 1])
    assert tree.n_paths().tolist() == [5, 3, 1, 1, 2, 1]
    assert tree.rewards().tolist() == [1, 0, 0, 0, 1]
    assert [tree.depth_tokens(i) for i in range(6)] == [0, 2, 3, 4, 1, 3]
    assert tree.path(5) == [0, 1, 5]
    assert tree.response_tokens(5) == (1, 2, 9)
    assert tree.unique_tokens == 2 + 1 + 2 + 1 + 1
    assert tree.duplicated_tokens == 3 + 4 + 1 + 1 + 3


@given(trees())
def test_counts_and_values_equal_brute_force(tree: Tree) -> None:
    paths = trajectories(tree)
    through = [[path for path in paths if node.index in path] for node in tree.nodes]
    reward = [node.reward for node in tree.nodes]
    assert tree.num_trajectories == len(paths)
    assert tree.n_paths().tolist() == [len(group) for group in through]
    means = [sum(reward[path[-1]] for path in group) / len(group) for group in through]
    np.testing.assert_allclose(tree.values("leaf_mean"), means, rtol=1e-12)

    def children_mean(index: int) -> float:
        node = tree.nodes[index]
        if node.is_leaf:
            return reward[index]
        drawn = [children_mean(child) for child in node.children for _ in range(tree.nodes[child].draws)]
        return sum(drawn) / len(drawn)

    brute = [children_mean(node.index) for node in tree.nodes]
    np.testing.assert_allclose(tree.values("children_mean"), brute, rtol=1e-12, atol=1e-15)
    lengths = [len(node.tokens) for node in tree.nodes]
    assert tree.duplicated_tokens == sum(lengths[index] for path in paths for index in path[1:])
    assert tree.unique_tokens == sum(lengths[index] for index in {i for path in paths for i in path[1:]})


@given(trees())
def test_invariants_of_the_module(tree: Tree) -> None:
    for position, node in enumerate(tree.nodes):
        assert node.index == position
        assert node.parent < position
        assert node.tokens
        assert node.is_leaf != bool(node.children)
        steps = [(tree.nodes[child].tokens, tree.nodes[child].is_leaf) for child in node.children]
        assert len(steps) == len(set(steps)), "a step was sampled twice and not merged"
        if position:
            assert len(node.logprobs) == len(node.tokens)
            # Whoever was free to choose this step was free to choose the next one.
            assert node.is_leaf or node.draws <= sum(tree.nodes[child].draws for child in node.children)


def test_a_step_is_split_by_hand() -> None:
    tree = hand_tree()
    assert tree.split([(3, 1), (1, 1), (1, 2)]) == [4, 1, 2]
    assert [node.tokens for node in tree.nodes] == [(7, 8), (1,), (2,), (3,), (4,), (5,), (6,), (9,)]
    assert [node.parent for node in tree.nodes] == [-1, 0, 1, 2, 2, 4, 0, 2]
    assert [node.draws for node in tree.nodes] == [0, 2, 2, 1, 1, 1, 2, 1]
    assert [node.reward for node in tree.nodes] == [None, None, None, 1, None, 0, 0, 1]
    assert tree.nodes[5].logprobs == (math.log(0.9),)
    assert tree.nodes[7].round == 1
    np.testing.assert_allclose(tree.values("leaf_mean"), [2 / 5, 2 / 3, 2 / 3, 1, 0, 0, 0, 1])


def test_equal_parts_of_siblings_are_merged() -> None:
    tree = Tree("p", (1,))
    add(tree, ROOT, [step([2, 3], 0.5), step([4], 0.5)], 1.0)
    add(tree, ROOT, [step([2, 5], 0.25)], 0.0)
    assert tree.split([(1, 1), (3, 1)]) == [1, 1]
    assert [node.tokens for node in tree.nodes] == [(1,), (2,), (3,), (4,), (5,)]
    assert [node.draws for node in tree.nodes] == [0, 2, 1, 1, 1]
    assert tree.nodes[1].logprobs == (math.log(0.5),)  # the older one's


@given(trees(), st.data())
def test_a_split_tree_is_the_same_forest_of_trajectories(tree: Tree, data: st.DataObject) -> None:
    def described(tree: Tree) -> list[tuple[tuple[int, ...], float]]:
        return sorted((tree.response_tokens(path[-1]), tree.nodes[path[-1]].reward) for path in trajectories(tree))

    ends = data.draw(places(tree))
    paths, lengths = described(tree), tree.duplicated_tokens
    unique, sampled = tree.unique_tokens, sum(node.draws * len(node.tokens) for node in tree.nodes)
    prefixes = [tree.response_tokens(tree.nodes[i].parent) + tree.nodes[i].tokens[:k] for i, k in ends]
    found = tree.split(ends)
    assert [tree.response_tokens(index) for index in found] == prefixes
    assert described(tree) == paths
    assert tree.duplicated_tokens == lengths
    assert tree.unique_tokens <= unique  # fewer where equal parts met
    assert sum(node.draws * len(node.tokens) for node in tree.nodes) == sampled
    again = Tree.from_dict(json.loads(json.dumps(tree.to_dict())))  # checks the invariants of the module
    assert again.nodes == tree.nodes
    for node in tree.nodes:
        steps = [(tree.nodes[child].tokens, tree.nodes[child].is_leaf) for child in node.children]
        assert len(steps) == len(set(steps))


def test_bad_splits_raise_one_line_and_change_nothing() -> None:
    tree = hand_tree()
    before = tree.to_dict()
    for end, message in [
        ((1, 0), "node 1 cannot be split after 0 of 2 tokens"),
        ((1, 3), "node 1 cannot be split after 3 of 2"),
        ((ROOT, 1), "node 0 cannot be split after 1 of 2 tokens, it is the prompt"),
        ((6, 1), "no node 6 to split; there are 6"),
    ]:
        with pytest.raises(ValueError, match=message):
            tree.split([(3, 1), end])
    assert tree.split([(ROOT, 2), (4, 1)]) == [ROOT, 4]
    assert tree.to_dict() == before


@given(trees())
def test_ranks_exchange_trees_in_arrays(tree: Tree) -> None:
    again = pickle.loads(pickle.dumps(tree))
    assert again.to_dict() == tree.to_dict()
    again.insert(ROOT, [step([5], 0.5)], "eos", round=9)  # it can grow


def test_arrays_keep_versions_kept_sets_and_unknown_rewards() -> None:
    tree = Tree("p", (1,), merge=False)
    kept = [np.arange(n, dtype=np.int32).tobytes() for n in (3, 1, 2)]
    for _ in range(2):  # without merging, equal steps stay apart
        tree.insert(ROOT, [step([5, 6], 0.3), step([7], 0.5)], "stop", round=1, versions=[3, 4, 4], kept=kept)
    again = pickle.loads(pickle.dumps(tree))
    assert again.to_dict() == tree.to_dict()
    again.insert(ROOT, [step([5, 6], 0.3)], "length", round=2)
    assert len(again.nodes) == 6


def test_arrays_are_small() -> None:
    tree, rng = Tree("p", (1,)), np.random.default_rng(0)
    logprobs = np.log(rng.random(5000)).astype(np.float32).tolist()  # as engines return them
    tree.insert(ROOT, [(rng.integers(150_000, size=5000).tolist(), logprobs)], "eos", round=0)
    assert len(pickle.dumps(tree)) < 9 * 5000


@given(trees())
def test_json_round_trip(tree: Tree) -> None:
    again = Tree.from_dict(json.loads(json.dumps(tree.to_dict())))
    assert again.prompt_id == tree.prompt_id
    assert again.nodes == tree.nodes


def test_the_unknown_is_refused_not_guessed() -> None:
    tree = Tree("p", (1,))
    with pytest.raises(ValueError, match="no trajectory yet"):
        tree.values("leaf_mean")
    tree.insert(ROOT, [step([5], 0.5)], "eos", round=0)
    for ask in (lambda: tree.values("leaf_mean"), lambda: tree.values("children_mean"), tree.rewards):
        with pytest.raises(ValueError, match="reward of leaf 1 is not known"):
            ask()


def test_bad_calls_raise_one_line() -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        Tree("p", ())
    tree = hand_tree()
    before = tree.to_dict()
    bad = [
        (ROOT, [step([1], 0.5), ([], [])], "an empty step"),
        (ROOT, [], "has no step"),
        (ROOT, [step([1, 2], 0.5), ([1, 2], [-0.1])], "2 tokens but 1 log-probabilities"),
        (2, [step([1], 0.5)], "node 2 is a leaf"),
        (6, [step([1], 0.5)], "no node 6"),
        (-1, [step([1], 0.5)], "no node -1"),
    ]
    for branch_node, steps, message in bad:
        with pytest.raises(ValueError, match=message) as caught:
            tree.insert(branch_node, steps, "eos", round=1)
        assert "\n" not in str(caught.value)
    assert tree.to_dict() == before, "a refused trajectory left something behind"


def test_rewards_are_checked() -> None:
    tree = hand_tree()
    for leaf, reward, message in [
        (1, 1.0, "node 1 is not a leaf"),
        (2, 1.5, "outside"),
        (2, math.nan, "outside"),
        (2, 0.5, "cannot become 0.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            tree.set_reward(leaf, reward)
    tree.set_reward(2, 1.0)  # the same again is no contradiction
    assert add(tree, ROOT, [step([1, 2], 0.5), step([3], 0.8)], 1.0) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d.update(nodes=[]), "not the description of a tree"),
        (lambda d: d["nodes"][2].pop("draws") and d["nodes"][2].update(extra=1), "not the description"),
        (lambda d: d["nodes"][2].update(parent=4), "node 1 breaks an invariant"),
        (lambda d: d["nodes"][4].update(tokens=[]), "node 4 breaks an invariant"),
        (lambda d: d["nodes"][3].update(finish_reason=None), "node 3 breaks an invariant"),
        (lambda d: d["nodes"][1].update(reward=1.0), "node 1 breaks an invariant"),
        (lambda d: d["nodes"][5].update(draws=0), "node 5 breaks an invariant"),
        (lambda d: d["nodes"][5].update(reward=2.0), "node 5 breaks an invariant"),
    ],
)
def test_a_broken_description_is_refused(change, message) -> None:
    data = hand_tree().to_dict()
    change(data)
    with pytest.raises(ValueError, match=message):
        Tree.from_dict(data)
