"""From a micro-batch to context-parallel ranks: which rank holds which tokens.

The packed sequence is cut into blocks of equal length, and each rank gets equally many of them, so that all work that
is done for each token is balanced by itself. Attention is not: a token attends to as many tokens as its path is long.
Blocks therefore go, most pairs first, to the rank with the fewest pairs so far. On a single chain that deals one
block from the end of the sequence with one from its beginning; on trees it follows the depth.

Where a block ends means nothing to the tree: branches and steps cross the borders of ranks.
"""

from __future__ import annotations

import numpy as np

from nemo_ibtpo.tree.packing import IntArray

# More blocks lie more evenly; longer blocks mean less padding of a multiple, and fewer calls of a kernel.
_BLOCKS_PER_RANK = 32


def padded_length(length: int, multiple: int, num_ranks: int = 1) -> int:
    """Tokens that all ranks hold of a sequence, padding included."""
    block, per_rank = _blocks(length, multiple, num_ranks)
    return num_ranks * per_rank * block


def deal(depth_T: IntArray, multiple: int, num_ranks: int) -> IntArray:
    """The tokens of each rank.

    Args:
        depth_T: length of each token's path before it; it attends to so many tokens and to itself.
        multiple: what the number of tokens of a rank must be a multiple of; blocks begin at multiples of it.
        num_ranks: context-parallel ranks.

    Returns:
        [num_ranks, L] increasing storage indices of each rank; indices from T on are padding, which stands at the
        end of the sequence and attends to itself alone. Each index below ``num_ranks * L`` is there once.
    """
    block, per_rank = _blocks(len(depth_T), multiple, num_ranks)
    padding = num_ranks * per_rank * block - len(depth_T)
    pairs = np.pad(depth_T + 1, (0, padding), constant_values=1).reshape(-1, block).sum(axis=1)
    loads, held = [0] * num_ranks, [[] for _ in range(num_ranks)]  # type: list[int], list[list[int]]
    for index in np.argsort(-pairs, kind="stable").tolist():
        rank = min((r for r in range(num_ranks) if len(held[r]) < per_rank), key=loads.__getitem__)
        loads[rank] += int(pairs[index])
        held[rank].append(index)
    first = np.sort(np.array(held), axis=1) * block
    return (first[:, :, None] + np.arange(block)).reshape(num_ranks, -1)


def keys_of_ranks(dealt: IntArray, subtree_end_T: IntArray) -> list[IntArray]:
    """The tokens that each rank's queries attend to, its own included.

    Token j is one of them if the rank has a query i in ``j <= i < subtree_end[j]``.

    Args:
        dealt: as :func:`deal` returned it.
        subtree_end_T: exclusive end of each token's subtree, padding included.

    Returns:
        Increasing storage indices, of different number for each rank.
    """
    key_T = np.arange(dealt.size)
    following_T = (np.append(own, dealt.size)[np.searchsorted(own, key_T)] for own in dealt)
    return [np.flatnonzero(next_query < subtree_end_T) for next_query in following_T]


def _blocks(length: int, multiple: int, num_ranks: int) -> tuple[int, int]:
    """Tokens of a block, and blocks of a rank."""
    wanted = length // (num_ranks * _BLOCKS_PER_RANK) if num_ranks > 1 else 1
    block = -(-max(1, wanted) // multiple) * multiple
    return block, -(-length // (num_ranks * block))
