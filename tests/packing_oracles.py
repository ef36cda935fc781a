"""Packed trees read back the slow way: what a sequence means, spelled out token by token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from nemo_ibtpo.tree.packing import BoolArray, Credit, IntArray, PackedBatch, concat, layout, pack_tree
from nemo_ibtpo.tree.tree import Tree


def pack_trees(forest: Sequence[Tree], credits: Sequence[Credit] | None = None) -> PackedBatch:
    """Whole trees in one sequence."""
    return concat([pack_tree(t, c) for t, c in zip(forest, credits or [None] * len(forest), strict=True)])


def nodes_of(forest: Sequence[Tree]) -> IntArray:
    """The step of each token of packed whole trees, numbered tree after tree in the order of ``Tree.nodes``."""
    first = np.cumsum([0, *(len(tree.nodes) for tree in forest)])
    return np.concatenate([layout(tree).node + start for tree, start in zip(forest, first, strict=False)])


def n_paths_of(forest: Sequence[Tree]) -> IntArray:
    """Trajectories through each token of packed whole trees."""
    return np.concatenate([tree.n_paths() for tree in forest])[nodes_of(forest)]


def tree_slices(batch: PackedBatch) -> list[slice]:
    """The storage range of each tree, in order: each begins with the first token of its prompt."""
    bounds = [*np.flatnonzero(batch.depth == 0).tolist(), len(batch)]
    return [slice(start, end) for start, end in pairwise(bounds)]


def ancestor_mask(batch: PackedBatch) -> BoolArray:
    """Which token (column j) each token (row i) may attend to, itself included; [T, T]."""
    position_T = np.arange(len(batch))
    return (position_T <= position_T[:, None]) & (position_T[:, None] < batch.subtree_end)


def unpack_paths(batch: PackedBatch) -> list[IntArray]:
    """Storage indices of the tokens on each root-to-leaf path, in storage order of the leaves.

    A path that several trajectories took appears once.
    """
    paths = []
    for last in np.flatnonzero(batch.subtree_end == np.arange(len(batch)) + 1):  # nothing follows it on its path
        path = np.empty(batch.depth[last] + 1, dtype=np.int64)
        for place in range(len(path) - 1, -1, -1):
            path[place] = last
            last = batch.predecessor[last]
        paths.append(path)
    return paths
