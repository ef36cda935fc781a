"""Tree attention on a GPU: FlexAttention with a block mask worked out from ``subtree_end``.

The mask is never materialised per pair of tokens. Which blocks of 128 x 128 pairs hold an allowed pair, and which
hold nothing else, follows from the smallest and the largest ``subtree_end`` of the key block:

- with query block i after key block j, some pair is allowed iff the first query lies inside the longest subtree of
  the keys, and all pairs are iff the last query lies inside the shortest;
- the blocks on the diagonal always hold both kinds;
- query blocks before the key block see nothing of it.

So the mask takes a few integers per pair of blocks, and FlexAttention computes the allowed blocks only. It is made
once per micro-batch and serves all layers, forward and backward.

Tests on a CPU compare the blocks with the ancestor relation, and the forward pass of FlexAttention with these blocks
with SDPA. The backward pass and the compiled kernel need a GPU (``tests/gpu``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
LENGTH_MULTIPLE = BLOCK  # whole blocks only: one compiled kernel serves all lengths


def prepare(subtree_end_T: Tensor, queries_L: Tensor | None = None) -> BlockMask:
    """The block mask of a packed sequence.

    Args:
        subtree_end_T: exclusive end of each token's subtree; T is a multiple of 128.
        queries_L: storage indices of the tokens that attend, whole blocks of 128; None for all T in their order.
    """
    end_T = subtree_end_T.to(torch.int32)
    ends = end_T.view(-1, BLOCK)
    first_key = torch.arange(len(ends), device=ends.device)[None, :] * BLOCK
    first_query = first_key.T if queries_L is None else queries_L[::BLOCK, None]
    before = first_key < first_query  # the key block (column) lies before the query block (row)
    some = before & (ends.amax(dim=1)[None, :] > first_query)
    every = before & (ends.amin(dim=1)[None, :] >= first_query + BLOCK)
    diagonal = first_key == first_query

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end_T[key])

    if queries_L is None:
        rule = allowed
    else:
        index_L = queries_L.to(torch.int32)

        def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return allowed(batch, head, index_L[query], key)

    return BlockMask.from_kv_blocks(
        *_listed(some & ~every | diagonal), *_listed(every), BLOCK_SIZE=BLOCK, mask_mod=rule
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Per row the number of True columns, [1, 1, m], and their indices in front of the others, [1, 1, m, n]."""
    count = blocks.sum(dim=1, dtype=torch.int32)
    indices = blocks.to(torch.uint8).argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return count[None, None], indices[None, None]


@functools.cache
def compiled(backend: str | Callable[..., object] = "inductor") -> Callable[..., Tensor]:
    """The compiled attention; one graph serves all lengths.

    With ``fullgraph`` a graph beyond torch's recompile limit raises. Without it FlexAttention would run eager there,
    and hold the scores of every pair of tokens.
    """
    return torch.compile(_attend, dynamic=True, fullgraph=True, backend=backend)


def _attend(query: Tensor, key: Tensor, value: Tensor, prepared: BlockMask, scale: float | None) -> Tensor:
    # The length is symbolic. Told that it is a multiple of the block, the compiler leaves out bounds checks.
    torch._check(query.size(2) % BLOCK == 0)
    torch._check(key.size(2) % BLOCK == 0)
    return flex_attention(query, key, value, block_mask=prepared, scale=scale, enable_gqa=True)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prepared: BlockMask,
    scale: float | None,
    backend: str | Callable[..., object] = "inductor",
) -> Tensor:
    """Attend along the paths.

    Args:
        query: [1, heads, L, head_dim] of the tokens that attend; L is a multiple of 128.
        key, value: [1, groups, T, head_dim]; each group serves heads / groups query heads; T is a multiple of 128.
        prepared: what :func:`prepare` made of the sequence.
        scale: of the scores; None is 1 / sqrt(head_dim).
        backend: of ``torch.compile``; tests look at what it is given.

    Returns:
        [1, heads, L, head_dim].
    """
    # The backward pass works on one block of keys of one key/value head at a time. Every token of a tree attends to
    # the prompt's block; with grouped heads that block alone would go over all tokens once for each query head, while
    # the other processors wait. Copies for each query head share that work out (docs/performance.md). They are made
    # here, because inside the compiled function the number of heads would become an expression that torch 2.11 cannot
    # lower.
    shared_by = query.size(1) // key.size(1)
    key, value = (x.repeat_interleave(shared_by, dim=1) for x in (key, value))
    return compiled(backend)(query, key, value, prepared, scale)
