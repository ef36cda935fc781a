"""Training reads packed trees only: a token lost, doubled or put under a wrong mask trains another objective.

Everything is compared with what a naive walk over parent pointers gives, on random branched trees, several to
a sequence. Not exercised: what a model computes under the mask (tests/unit/megatron).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packing_oracles import ancestor_mask, n_paths_of, nodes_of, pack_trees, tree_slices, unpack_paths
from strategies import hand_tree, places, trajectories, trees

from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.packing import Credit, PackedBatch, concat, layout, pack_tree
from nemo_ibtpo.tree.tree import Tree

forests = st.lists(trees(), min_size=1, max_size=3)


def whereabouts(forest: list[Tree]) -> list[tuple[int, int, int]]:
    """(tree, node, offset within the node) of every token of packed whole trees."""
    result = []
    for number, tree in enumerate(forest):
        seen: Counter[int] = Counter()
        for node in layout(tree).node.tolist():
            result.append((number, node, seen[node]))
            seen[node] += 1
    return result


def test_layout_by_hand() -> None:
    packed = pack_trees([hand_tree()])
    # Depth first, children oldest first: root (7 8), a (1 2), b (3), c (4 5), e (9), d (6).
    assert packed.tokens.tolist() == [7, 8, 1, 2, 3, 4, 5, 9, 6]
    assert layout(hand_tree()).node.tolist() == [0, 0, 1, 1, 2, 3, 3, 5, 4]
    assert packed.depth.tolist() == [0, 1, 2, 3, 4, 4, 5, 4, 2]
    # b, c and e follow the last token of a (3); d follows the last token of the prompt (1).
    assert packed.predecessor.tolist() == [-1, 0, 1, 2, 3, 3, 5, 3, 1]
    assert packed.subtree_end.tolist() == [9, 9, 8, 8, 5, 7, 7, 8, 9]
    assert packed.sampled.tolist() == packed.in_loss.tolist() == [False, False] + [True] * 7
    expected = np.log([1, 1, 0.5, 0.5, 0.8, 0.4, 0.9, 0.1, 0.25]).astype(np.float32)
    np.testing.assert_array_equal(packed.behaviour_logprobs, expected)
    assert [path.tolist() for path in unpack_paths(packed)] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 5, 6],
        [0, 1, 2, 3, 7],
        [0, 1, 8],
    ]


@given(forests)
def test_no_token_is_lost_or_doubled(forest: list[Tree]) -> None:
    packed = pack_trees(forest)
    assert len(packed) == sum(len(node.tokens) for tree in forest for node in tree.nodes)
    assert len(tree_slices(packed)) == len(forest)
    for t, (tree, index, offset) in enumerate(whereabouts(forest)):
        node = forest[tree].nodes[index]
        assert packed.tokens[t] == node.tokens[offset]
        assert packed.sampled[t] == packed.in_loss[t] == (index != 0)
        assert packed.behaviour_logprobs[t] == np.float32(node.logprobs[offset] if index else 0.0)


@given(forests)
def test_every_path_can_be_read_back(forest: list[Tree]) -> None:
    packed, n_paths_T = pack_trees(forest), n_paths_of(forest)
    begins = [piece.start for piece in tree_slices(packed)]
    read = Counter()
    for path in unpack_paths(packed):
        assert packed.depth[path].tolist() == list(range(len(path)))
        key = (begins.index(path[0]), tuple(packed.tokens[path].tolist()))
        read[key] += int(n_paths_T[path[-1]])
    expected = Counter(
        (i, tuple(token for index in path for token in tree.nodes[index].tokens))
        for i, tree in enumerate(forest)
        for path in trajectories(tree)
    )
    assert read == expected


@given(forests)
def test_mask_is_the_ancestor_relation(forest: list[Tree]) -> None:
    packed = pack_trees(forest)
    where = whereabouts(forest)

    def is_ancestor(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
        """Whether token a is b or lies before it on its path, from the parent pointers alone."""
        if a[0] != b[0]:
            return False
        if a[1] == b[1]:
            return a[2] <= b[2]
        parent = forest[b[0]].nodes[b[1]].parent
        return parent >= 0 and is_ancestor(a, (b[0], parent, len(forest[b[0]].nodes[parent].tokens) - 1))

    naive = np.array([[is_ancestor(column, row) for column in where] for row in where])
    mask = ancestor_mask(packed)
    np.testing.assert_array_equal(mask, naive)
    # A token sees exactly its own path, whose length gives its position, and what comes right before it.
    np.testing.assert_array_equal(packed.depth, mask.sum(axis=1) - 1)
    for t, seen in enumerate(mask):
        before = np.flatnonzero(seen)[:-1]
        assert packed.predecessor[t] == (before[-1] if len(before) else -1)


@given(forests)
def test_a_tree_among_others_is_the_tree_alone(forest: list[Tree]) -> None:
    packed = pack_trees(forest)
    for tree, piece in zip(forest, tree_slices(packed), strict=True):
        alone = pack_tree(tree)
        shift = {"subtree_end": piece.start, "predecessor": np.where(alone.predecessor < 0, 0, piece.start)}
        for field in fields(PackedBatch):
            own, expected = getattr(packed, field.name), getattr(alone, field.name)
            if expected is None:
                assert own is None
                continue
            assert own.dtype == expected.dtype
            np.testing.assert_array_equal(own[piece], expected + shift.get(field.name, 0), err_msg=field.name)


@given(forests)
def test_credit_is_that_of_the_step(forest: list[Tree]) -> None:
    values = [100.0 * i + np.arange(len(tree.nodes)) for i, tree in enumerate(forest)]
    packed = pack_trees(forest, [Credit(v + 0.25, v + 0.5, v + 0.75, 1.0) for v in values])
    per_token = np.where(packed.sampled, np.concatenate(values)[nodes_of(forest)], np.nan)
    for name, shift in (("weight", 0.25), ("positive", 0.5), ("negative", 0.75)):
        np.testing.assert_array_equal(getattr(packed, name), np.nan_to_num(per_token + shift).astype(np.float32))


def test_credit_of_another_tree_is_refused() -> None:
    three = np.zeros(3)
    with pytest.raises(ValueError, match="credit for 3 steps does not fit a tree of 6"):
        pack_tree(hand_tree(), Credit(three, three, three, 0.0))


def test_lag_of_each_token() -> None:
    tree = Tree("p", (4, 5))
    step = ((7, 8, 9), (-1.0, -2.0, -3.0))
    tree.insert(ROOT, [step], "eos", 0, versions=(3, 3, 5))
    tree.insert(ROOT, [((6,), (-1.0,))], "eos", 1, versions=(6,))
    assert pack_tree(tree).lag is None
    packed = pack_tree(tree, version=6)
    assert packed.lag is not None and packed.lag.tolist() == [0, 0, 3, 3, 1, 0]
    assert concat([packed, packed]).lag.tolist() == [0, 0, 3, 3, 1, 0] * 2  # type: ignore[union-attr]
    assert packed.sampled.tolist() == [False] * 2 + [True] * 4


def test_a_tree_without_trajectories_is_a_prompt() -> None:
    assert not pack_trees([Tree("p", (4, 5, 6))]).sampled.any()


def test_nothing_and_ragged_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to pack"):
        concat([])
    packed = pack_trees([hand_tree()])
    with pytest.raises(ValueError, match="log-probabilities that others lack"):
        concat([packed, replace(packed, old_logprobs=packed.behaviour_logprobs)])
    with pytest.raises(ValueError, match=r"one shape \[T\]"):
        replace(packed, depth=packed.depth[1:])


def test_a_large_tree_packs_in_linear_time() -> None:
    """A chain of 20,000 steps: recursion or a quadratic walk would not pass."""
    tree = Tree("p", (1,))
    tree.insert(0, [([2], [-1.0])] * 20_000, "eos", round=0)
    packed = pack_trees([tree])
    assert packed.depth[-1] == 20_000
    assert (packed.subtree_end == 20_001).all()


@given(trees(), st.data())
def test_a_split_tree_packs_the_same_paths_with_the_same_weights(tree: Tree, data: st.DataObject) -> None:
    """Trajectories through each prefix, which is what a token weighs, do not depend on where nodes end."""

    def through_prefixes() -> Counter[tuple[int, ...]]:
        packed, n_paths_T = pack_trees([tree]), n_paths_of([tree])
        counts: Counter[tuple[int, ...]] = Counter()
        for t in range(len(packed)):
            ancestors = np.flatnonzero(ancestor_mask(packed)[t])
            assert packed.depth[ancestors].tolist() == list(range(len(ancestors)))
            counts[tuple(packed.tokens[ancestors].tolist())] += int(n_paths_T[t])
        return counts

    ends = data.draw(places(tree))
    before = through_prefixes()
    tree.split(ends)
    assert through_prefixes() == before
