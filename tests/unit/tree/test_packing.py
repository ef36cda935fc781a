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
from strategies import hand_tree, places, trajectories, trees

from nemo_ibtpo.tree.packing import (
    PackedTrees,
    ancestor_mask,
    concat,
    pack_trees,
    split,
    tree_slices,
    unpack_paths,
)
from nemo_ibtpo.tree.tree import Tree

forests = st.lists(trees(), min_size=1, max_size=3)


def assert_same(a: PackedTrees, b: PackedTrees) -> None:
    for field in fields(PackedTrees):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)
        assert getattr(a, field.name).dtype == getattr(b, field.name).dtype


def whereabouts(packed: PackedTrees, forest: list[Tree]) -> list[tuple[int, int, int]]:
    """(tree, node, offset within the node) of every token."""
    first_node = np.cumsum([0] + [len(tree.nodes) for tree in forest])
    seen: Counter[int] = Counter()
    result = []
    for tree, node in zip(packed.tree.tolist(), packed.node.tolist(), strict=True):
        result.append((tree, node - int(first_node[tree]), seen[node]))
        seen[node] += 1
    return result


def test_layout_by_hand() -> None:
    packed = pack_trees([hand_tree()])
    # Depth first, children oldest first: root (7 8), a (1 2), b (3), c (4 5), e (9), d (6).
    assert packed.tokens.tolist() == [7, 8, 1, 2, 3, 4, 5, 9, 6]
    assert packed.node.tolist() == [0, 0, 1, 1, 2, 3, 3, 5, 4]
    assert packed.depth.tolist() == [0, 1, 2, 3, 4, 4, 5, 4, 2]
    # b, c and e follow the last token of a (3); d follows the last token of the prompt (1).
    assert packed.predecessor.tolist() == [-1, 0, 1, 2, 3, 3, 5, 3, 1]
    assert packed.subtree_end.tolist() == [9, 9, 8, 8, 5, 7, 7, 8, 9]
    assert packed.n_paths.tolist() == [5, 5, 3, 3, 1, 1, 1, 1, 2]
    assert packed.tree.tolist() == [0] * 9
    assert packed.loss_mask.tolist() == [False, False] + [True] * 7
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
    assert packed.num_trees == len(forest)
    assert packed.num_nodes == sum(len(tree.nodes) for tree in forest)
    for t, (tree, index, offset) in enumerate(whereabouts(packed, forest)):
        node = forest[tree].nodes[index]
        assert packed.tokens[t] == node.tokens[offset]
        assert packed.loss_mask[t] == (index != 0)
        assert packed.behaviour_logprobs[t] == np.float32(node.logprobs[offset] if index else 0.0)
        assert packed.n_paths[t] == sum(index in path for path in trajectories(forest[tree]))


@given(forests)
def test_every_path_can_be_read_back(forest: list[Tree]) -> None:
    packed = pack_trees(forest)
    read = Counter()
    for path in unpack_paths(packed):
        assert packed.depth[path].tolist() == list(range(len(path)))
        key = (int(packed.tree[path[0]]), tuple(packed.tokens[path].tolist()))
        read[key] += int(packed.n_paths[path[-1]])
    expected = Counter(
        (i, tuple(token for index in path for token in tree.nodes[index].tokens))
        for i, tree in enumerate(forest)
        for path in trajectories(tree)
    )
    assert read == expected


@given(forests)
def test_mask_is_the_ancestor_relation(forest: list[Tree]) -> None:
    packed = pack_trees(forest)
    where = whereabouts(packed, forest)

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
def test_split_undoes_concat(forest: list[Tree]) -> None:
    packed = pack_trees(forest)
    alone = [pack_trees([tree]) for tree in forest]
    for a, b in zip(split(packed), alone, strict=True):
        assert_same(a, b)
    assert_same(concat(alone), packed)
    for piece, part in zip(tree_slices(packed), alone, strict=True):
        np.testing.assert_array_equal(packed.tokens[piece], part.tokens)


def test_a_tree_without_trajectories_is_a_prompt() -> None:
    packed = pack_trees([Tree("p", (4, 5, 6))])
    assert packed.n_paths.tolist() == [0, 0, 0]
    assert not packed.loss_mask.any()


def test_nothing_and_ragged_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to pack"):
        pack_trees([])
    packed = pack_trees([hand_tree()])
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

    def through_prefixes(packed: PackedTrees) -> Counter[tuple[int, ...]]:
        counts: Counter[tuple[int, ...]] = Counter()
        for t in range(len(packed)):
            ancestors = np.flatnonzero(ancestor_mask(packed)[t])
            assert packed.depth[ancestors].tolist() == list(range(len(ancestors)))
            counts[tuple(packed.tokens[ancestors].tolist())] += int(packed.n_paths[t])
        return counts

    ends = data.draw(places(tree))
    before = through_prefixes(pack_trees([tree]))
    tree.split(ends)
    assert through_prefixes(pack_trees([tree])) == before
