"""The block mask of FlexAttention says what the ancestor relation says, block by block.

Why it matters: on a GPU a block that is missing hides context from every token in it, and a block that is wrongly
called full shows tokens a sibling branch; neither stops a run.

Random trees whose tokens are stretched into chains, so that subtrees span many blocks of 128. The forward pass is
FlexAttention's own, run without compilation on the CPU, where it applies the mask function but computes every block;
the lists of blocks are compared one by one instead. Not exercised: the compiled kernel and the backward pass, which
FlexAttention does not offer on a CPU (tests/gpu).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packing_oracles import pack_trees
from strategies import trees
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention

from nemo_ibtpo.megatron import attention_cpu, attention_cuda
from nemo_ibtpo.megatron.attention_cuda import BLOCK, prepare
from nemo_ibtpo.tree.tree import Tree


def stretched(forest: list[Tree], factor: int) -> Tensor:
    """``subtree_end`` of the packed trees with every token made a chain of ``factor``, padded to whole blocks."""
    ends = np.repeat(pack_trees(forest).subtree_end, factor) * factor
    padding = np.arange(len(ends), -(-len(ends) // BLOCK) * BLOCK)
    return torch.from_numpy(np.concatenate((ends, padding + 1)))


def naive_mask(subtree_end_T: Tensor) -> Tensor:
    index = torch.arange(len(subtree_end_T))
    return (index <= index[:, None]) & (index[:, None] < subtree_end_T)


def queries_of(blocks: list[int]) -> Tensor:
    """Storage indices of the tokens in these blocks."""
    return (torch.tensor(blocks)[:, None] * BLOCK + torch.arange(BLOCK)).flatten()


def dense(count: Tensor, indices: Tensor) -> Tensor:
    """Rows of listed columns as a bool matrix."""
    out = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for row, (n, columns) in enumerate(zip(count[0, 0], indices[0, 0], strict=True)):
        out[row, columns[:n].long()] = True
    return out


forests = st.lists(trees(), min_size=1, max_size=3)


@given(forests, st.integers(1, 40), st.data())
@settings(max_examples=60)
def test_blocks_are_those_of_the_ancestor_relation(forest: list[Tree], factor: int, data: st.DataObject) -> None:
    subtree_end = stretched(forest, factor)
    n = len(subtree_end) // BLOCK
    rows, queries = list(range(n)), None
    if data.draw(st.booleans()):
        rows = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
        queries = queries_of(rows)
    mask = prepare(subtree_end, queries)
    pairs = naive_mask(subtree_end).view(n, BLOCK, n, BLOCK).transpose(1, 2)[rows]
    some, every = pairs.any(-1).any(-1), pairs.all(-1).all(-1)
    assert torch.equal(dense(mask.kv_num_blocks, mask.kv_indices), some & ~every)
    assert torch.equal(dense(mask.full_kv_num_blocks, mask.full_kv_indices), every)
    # What the backward pass reads, listed by key block.
    assert torch.equal(dense(mask.q_num_blocks, mask.q_indices), (some & ~every).T)
    assert torch.equal(dense(mask.full_q_num_blocks, mask.full_q_indices), every.T)


def chain_with_three_leaves() -> Tree:
    tree = Tree("p", [1, 2])
    for leaf in (3, 4, 5):
        tree.insert(0, [((leaf,) * 3, (-0.5,) * 3)], "eos", round=0)
    return tree


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@given(trees(), st.integers(1, 20))
@example(chain_with_three_leaves(), 30)
@settings(max_examples=5)
def test_forward_equals_the_kernel_of_the_cpu(tree: Tree, factor: int) -> None:
    subtree_end = stretched([tree], factor)
    generator = torch.Generator().manual_seed(factor)
    q, k, v = (torch.randn(1, heads, len(subtree_end), 8, generator=generator) for heads in (4, 2, 2))
    ours = flex_attention(q, k, v, block_mask=prepare(subtree_end), scale=0.3, enable_gqa=True)
    expected = attention_cpu.attend(q, k, v, attention_cpu.prepare(subtree_end), 0.3)
    torch.testing.assert_close(ours, expected)
    queries = queries_of(list(range(len(subtree_end) // BLOCK))[::2])  # a share of the tokens attends
    share = q[:, :, queries]
    ours = flex_attention(share, k, v, block_mask=prepare(subtree_end, queries), scale=0.3, enable_gqa=True)
    torch.testing.assert_close(ours, expected[:, :, queries])


def test_lengths_and_trees_share_one_compilation() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = attention_cuda.compiled(counter)
    for factor in (40, 50, 90):
        subtree_end = stretched([chain_with_three_leaves()], factor)
        q, k, v = (torch.randn(1, heads, len(subtree_end), 24) for heads in (6, 2, 2))
        compiled(q, k, v, prepare(subtree_end), 0.3)
    assert counter.frame_count == 1


def test_a_graph_beyond_the_recompile_limit_raises() -> None:
    """Without ``fullgraph`` it would run eager, with the scores of all pairs of tokens, and nobody would notice."""
    torch._dynamo.reset()
    compiled = attention_cuda.compiled(CompileCounter())
    subtree_end = stretched([chain_with_three_leaves()], 40)
    with pytest.raises(FailOnRecompileLimitHit):
        for head_dim in range(8, 8 * (torch._dynamo.config.recompile_limit + 4), 8):
            for heads in (2, 4):
                q, k, v = (torch.randn(1, n, len(subtree_end), head_dim) for n in (heads, 2, 2))
                compiled(q, k, v, prepare(subtree_end), float(head_dim))


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (4, 4), (12, 2)])
def test_the_compiler_sees_as_many_heads_of_keys_as_of_queries(heads: int, groups: int) -> None:
    """A number of heads that is an expression of symbols, such as s * (4 // s), stops torch's compiler on a GPU."""
    torch._dynamo.reset()
    seen: list[tuple[str, str]] = []

    def look(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        (node,) = [n for n in graph.graph.nodes if n.target is torch.ops.higher_order.flex_attention]
        query, key = (node.args[i].meta["example_value"].shape[1] for i in range(2))
        seen.append((str(query), str(key)))
        return graph.forward

    subtree_end = stretched([chain_with_three_leaves()], 40)
    q, k, v = (torch.randn(1, n, len(subtree_end), 16) for n in (heads, groups, groups))
    ours = attention_cuda.attend(q, k, v, prepare(subtree_end), 0.3, look)
    assert [query == key for query, key in seen] == [True]
    torch.testing.assert_close(ours, attention_cpu.attend(q, k, v, attention_cpu.prepare(subtree_end), 0.3))
