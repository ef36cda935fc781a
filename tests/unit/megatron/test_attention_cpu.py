"""Attention run by run is attention under the ancestor mask, in value and in gradient.

Why it matters: on a CPU every layer of every pass goes through it, and a token that sees a sibling branch would train
on text that was never its context. Random trees, alone, together and cut into pieces; dense attention under the
naively computed mask is what they are compared with. Not exercised here: the model around it
(tests/distributed/test_gradients.py) and the kernel of a GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from packing_oracles import ancestor_mask, pack_trees
from strategies import trees
from torch import Tensor

from nemo_ibtpo.megatron.attention_cpu import attend, prepare
from nemo_ibtpo.tree.microbatches import assemble, cut
from nemo_ibtpo.tree.packing import IntArray, PackedBatch, layout, pack_tree
from nemo_ibtpo.tree.tree import Tree

HEADS, GROUPS, HEAD_DIM, SCALE = 4, 2, 8, 0.4


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Softmax over all pairs that the mask allows, written out."""
    k, v = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (key, value))
    return (query @ k.mT * SCALE).masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v


def assert_equals_dense(packed: PackedBatch, queries: IntArray | None = None) -> None:
    generator = torch.Generator().manual_seed(len(packed))
    rows = np.arange(len(packed)) if queries is None else queries
    inputs = [
        torch.randn(1, heads, length, HEAD_DIM, dtype=torch.float64, generator=generator).requires_grad_()
        for heads, length in ((HEADS, len(rows)), (GROUPS, len(packed)), (GROUPS, len(packed)))
    ]
    runs = prepare(torch.from_numpy(packed.subtree_end), None if queries is None else torch.from_numpy(queries))
    ours = attend(*inputs, runs, SCALE)
    expected = dense(*inputs, torch.from_numpy(ancestor_mask(packed)[rows]))
    torch.testing.assert_close(ours, expected)
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@given(st.lists(trees(), min_size=1, max_size=3))
def test_trees_attend_along_their_paths(forest: list[Tree]) -> None:
    assert_equals_dense(pack_trees(forest))


@given(st.lists(trees(), min_size=1, max_size=3), st.data())
def test_some_of_the_tokens_attend_along_their_paths(forest: list[Tree], data: st.DataObject) -> None:
    packed = pack_trees(forest)
    chosen = data.draw(st.sets(st.integers(0, len(packed) - 1), min_size=1))
    assert_equals_dense(packed, np.array(sorted(chosen)))


@given(trees(), st.integers(3, 20))
def test_pieces_of_a_tree_attend_along_their_paths(tree: Tree, budget: int) -> None:
    packed = pack_tree(tree)
    assume(packed.depth.max() < budget)
    for piece in cut(0, layout(tree), budget):
        assert_equals_dense(assemble([piece], {0: packed}))


@given(trees())
def test_there_is_one_run_for_each_leaf(tree: Tree) -> None:
    packed = pack_tree(tree)
    runs = prepare(torch.from_numpy(packed.subtree_end))
    assert len(runs.lengths) == len(list(tree.leaves()))
    # All that is attended to: the path of each leaf, once.
    ends = np.cumsum(runs.lengths) - 1
    assert runs.key_lengths == (packed.depth[ends] + 1).tolist()
