"""Attention along the paths of packed trees on a CPU: one dense call per run.

Stored depth-first, packed trees are a sequence of *runs*: a run goes from a token that is not a child of the one
stored before it down to a leaf, so there is one run per leaf. All tokens of a run have the same ancestors outside of
it; they attend to those and, causally, to the run itself. Hence the work and the masks are those of the tokens'
own paths, not of all pairs in the sequence, and no run computes what another one did.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class Runs:
    """What each run of a packed sequence attends to.

    Attributes:
        lengths: queries of each run; they add up to T.
        key_lengths: keys of each run: its ancestors and its own tokens.
        keys: storage indices of the keys, run after run, increasing within one.
        masks: additive float mask [queries, keys] of each run; None for one without ancestors, which is causal.
    """

    lengths: list[int]
    key_lengths: list[int]
    keys: Tensor
    masks: list[Tensor | None]


def find_runs(subtree_end: Tensor, dtype: torch.dtype) -> Runs:
    """Cut a packed sequence into runs.

    Args:
        subtree_end: [T] exclusive end of each token's subtree.
        dtype: of the queries, which the masks must share.
    """
    length = len(subtree_end)
    index = torch.arange(length)
    begins = torch.ones(length, dtype=torch.bool)
    begins[1:] = subtree_end[:-1] <= index[1:]  # the token before is no ancestor
    bounds = [*begins.nonzero().flatten().tolist(), length]
    lengths, keys, masks = [], [], []
    for start, end in pairwise(bounds):
        ancestors = (subtree_end[:start] > start).nonzero().flatten()
        lengths.append(end - start)
        keys.append(torch.cat((ancestors, index[start:end])))
        mask = torch.full((lengths[-1], len(keys[-1])), -torch.inf, dtype=dtype).triu_(len(ancestors) + 1)
        masks.append(mask if len(ancestors) else None)
    return Runs(lengths, [len(k) for k in keys], torch.cat(keys), masks)


def attend(query: Tensor, key: Tensor, value: Tensor, runs: Runs, scale: float | None) -> Tensor:
    """Scaled dot-product attention, each run to its keys.

    Args:
        query: [heads, T, head_dim].
        key, value: [groups, T, head_dim]; each group serves heads / groups query heads.
        runs: of these T tokens.
        scale: of the dot products; None is 1 / sqrt(head_dim).

    Returns:
        [heads, T, head_dim].
    """
    # Gathered once for all runs: a gather for each would cost a gradient as long as the sequence for each.
    k, v = (x.index_select(1, runs.keys).split(runs.key_lengths, dim=1) for x in (key, value))
    outputs = [
        scaled_dot_product_attention(
            q[None], k[i][None], v[i][None], attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
        for i, (q, mask) in enumerate(zip(query.split(runs.lengths, dim=1), runs.masks, strict=True))
    ]
    return torch.cat(outputs, dim=2)[0]
