"""Trees as one flat token sequence, each shared prefix once: the second of the two things that travel.

Tokens lie in depth-first order, one tree after the other. Three integers a token say all that the model needs
to treat the sequence as the tree it is:

- ``depth[t]``, the token's index on its own root-to-leaf path, is its rotary position;
- ``subtree_end[t]``: token i may attend to token j iff ``j <= i < subtree_end[j]``;
- ``predecessor[t]``: the storage index of the token before it on its path. The log-probability of token t is
  read from the hidden state of its predecessor, so that the usual labels shifted by one, which are wrong at
  every branch, are never used.

Several trees need no further rule: a token of one tree lies outside the subtrees of every other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_ibtpo.tree.tree import ROOT, Tree

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PackedTrees:
    """Trees packed for one forward pass. Every array has one entry a token, T in all.

    Attributes:
        tokens: token ids.
        depth: index of the token on its own path, 0 for the first prompt token.
        predecessor: storage index of the token before it on its path, -1 for the first prompt token.
        subtree_end: exclusive end of the token's subtree; ``t < subtree_end[t] <= T``. Inside a step every
            token has the same end, because the rest of the step follows it on each of its paths.
        n_paths: trajectories through the token, a leaf counted once per draw that ended in it.
        node: row of the token's node in per-node arrays of all packed trees, numbered tree after tree in the
            order of ``Tree.nodes`` (root included), so that ``per_node[node]`` spreads them over tokens.
        tree: index of the token's tree among the packed ones.
        behaviour_logprobs: log-probability (nats) under the policy that sampled the token, 0 in the prompt.
        loss_mask: True for sampled tokens, False for prompt tokens.
    """

    tokens: IntArray
    depth: IntArray
    predecessor: IntArray
    subtree_end: IntArray
    n_paths: IntArray
    node: IntArray
    tree: IntArray
    behaviour_logprobs: FloatArray
    loss_mask: BoolArray

    def __len__(self) -> int:
        return len(self.tokens)

    def __post_init__(self) -> None:
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        if len(set(shapes.values())) != 1 or len(self.tokens.shape) != 1:
            raise ValueError(f"packed arrays must all have the one shape [T]; they have {shapes}")

    @property
    def num_trees(self) -> int:
        """Trees in the sequence."""
        return int(self.tree[-1]) + 1

    @property
    def num_nodes(self) -> int:
        """Rows of a per-node array of all packed trees, roots included."""
        return int(self.node.max()) + 1  # no node is empty, so the last one has a token


def pack_trees(trees: Sequence[Tree]) -> PackedTrees:
    """Lay trees one after another, each depth-first with children oldest first.

    Raises:
        ValueError: there is no tree.
    """
    return concat([_pack_tree(tree) for tree in trees])


def _pack_tree(tree: Tree) -> PackedTrees:
    order = _depth_first(tree)
    lengths_N = np.array([len(node.tokens) for node in tree.nodes])
    parent_N = np.array([node.parent for node in tree.nodes])

    # Where each node's tokens lie (its storage range) and how deep its first token is.
    storage_end_N = np.empty_like(lengths_N)
    storage_end_N[order] = np.cumsum(lengths_N[order])
    start_N = storage_end_N - lengths_N
    depth_N = np.zeros_like(lengths_N)
    subtree_end_N = storage_end_N.copy()
    for node in tree.nodes[1:]:
        depth_N[node.index] = depth_N[node.parent] + lengths_N[node.parent]
    for node in reversed(tree.nodes[1:]):
        subtree_end_N[node.parent] = max(subtree_end_N[node.parent], subtree_end_N[node.index])
    # The last row of storage_end_N stands in for the root's parent, which index -1 picks; then it is -1.
    before_N = np.where(parent_N >= 0, storage_end_N[parent_N] - 1, -1)

    node_T = np.repeat(order, lengths_N[order])
    position_T = np.arange(len(node_T))
    offset_T = position_T - start_N[node_T]
    sampled_T = node_T != ROOT
    return PackedTrees(
        tokens=_flatten((tree.nodes[i].tokens for i in order), np.int64, len(node_T)),
        depth=depth_N[node_T] + offset_T,
        predecessor=np.where(offset_T == 0, before_N[node_T], position_T - 1),
        subtree_end=subtree_end_N[node_T],
        n_paths=tree.n_paths()[node_T],
        node=node_T,
        tree=np.zeros_like(node_T),
        behaviour_logprobs=_flatten(
            (tree.nodes[i].logprobs or (0.0,) * len(tree.nodes[i].tokens) for i in order),
            np.float32,
            len(node_T),
        ),
        loss_mask=sampled_T,
    )


def _depth_first(tree: Tree) -> IntArray:
    order, stack = [], [ROOT]
    while stack:
        order.append(stack.pop())
        stack.extend(reversed(tree.nodes[order[-1]].children))
    return np.array(order)


def _flatten(rows: Iterable[Sequence[float]], dtype: type[np.generic], count: int) -> NDArray[Any]:
    return np.fromiter(chain.from_iterable(rows), dtype=dtype, count=count)


def concat(parts: Sequence[PackedTrees]) -> PackedTrees:
    """One sequence with the trees of all parts, in order.

    Raises:
        ValueError: there is no part.
    """
    if not parts:
        raise ValueError("nothing to pack: at least one tree is needed")
    if len(parts) == 1:
        return parts[0]
    token_offsets = _offsets([len(part) for part in parts])
    node_offsets = _offsets([part.num_nodes for part in parts])
    tree_offsets = _offsets([part.num_trees for part in parts])
    predecessor = [
        np.where(part.predecessor >= 0, part.predecessor + offset, -1)
        for part, offset in zip(parts, token_offsets, strict=True)
    ]
    return PackedTrees(
        tokens=np.concatenate([part.tokens for part in parts]),
        depth=np.concatenate([part.depth for part in parts]),
        predecessor=np.concatenate(predecessor),
        subtree_end=np.concatenate([p.subtree_end + o for p, o in zip(parts, token_offsets, strict=True)]),
        n_paths=np.concatenate([part.n_paths for part in parts]),
        node=np.concatenate([p.node + o for p, o in zip(parts, node_offsets, strict=True)]),
        tree=np.concatenate([p.tree + o for p, o in zip(parts, tree_offsets, strict=True)]),
        behaviour_logprobs=np.concatenate([part.behaviour_logprobs for part in parts]),
        loss_mask=np.concatenate([part.loss_mask for part in parts]),
    )


def _offsets(sizes: Sequence[int]) -> list[int]:
    return list(accumulate(sizes, initial=0))[:-1]


def tree_slices(packed: PackedTrees) -> list[slice]:
    """The storage range of each tree, in order."""
    bounds = np.searchsorted(packed.tree, np.arange(packed.num_trees + 1))
    return [slice(int(start), int(end)) for start, end in pairwise(bounds)]


def split(packed: PackedTrees) -> list[PackedTrees]:
    """Each tree packed alone, in order: the inverse of :func:`concat`."""
    parts, first_node = [], 0
    for piece in tree_slices(packed):
        local = {field.name: getattr(packed, field.name)[piece] for field in fields(packed)}
        predecessor = local["predecessor"]
        local["predecessor"] = np.where(predecessor >= 0, predecessor - piece.start, -1)
        local["subtree_end"] = local["subtree_end"] - piece.start
        local["node"] = local["node"] - first_node
        local["tree"] = np.zeros_like(local["tree"])
        parts.append(PackedTrees(**local))
        first_node += parts[-1].num_nodes
    return parts


def ancestor_mask(packed: PackedTrees) -> BoolArray:
    """Which token (column j) each token (row i) may attend to, itself included; [T, T].

    For tests and for attention on short sequences: it takes T * T bytes.
    """
    position_T = np.arange(len(packed))
    return (position_T <= position_T[:, None]) & (position_T[:, None] < packed.subtree_end)


def unpack_paths(packed: PackedTrees) -> list[IntArray]:
    """Storage indices of the tokens on each root-to-leaf path, in storage order of the leaves.

    A path that several trajectories took appears once; ``packed.n_paths`` of its last token counts them.
    """
    position_T = np.arange(len(packed))
    paths = []
    for last in np.flatnonzero(packed.subtree_end == position_T + 1):  # nothing follows it on its path
        path = np.empty(packed.depth[last] + 1, dtype=np.int64)
        for place in range(len(path) - 1, -1, -1):
            path[place] = last
            last = packed.predecessor[last]
        paths.append(path)
    return paths
