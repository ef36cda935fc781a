"""Tree attention on a CPU: scaled dot-product attention, one call per run.

Stored depth-first, packed trees are a sequence of *runs*: a run goes from a token that is not a child of the one
stored before it down to a leaf, so there is one run per leaf. All tokens of a run have the same ancestors outside of
it; they attend to those and, causally, to the run itself. Hence the work is that of the tokens' own paths, not of all
pairs in the sequence, no run computes what another one did, and one causal mask serves all runs.

Where only some tokens of the sequence attend, a run ends as well where the next of them is not the next token stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

LENGTH_MULTIPLE = 1


@dataclass(frozen=True, slots=True)
class Runs:
    """What each run of a packed sequence attends to.

    Attributes:
        lengths: queries of each run; they add up to L.
        key_lengths: keys of each run, its ancestors and its own tokens: the length of the path to its leaf.
        keys: storage indices of the keys, run after run, in the order of the path.
        causal: [L, L] float32 additive mask of the longest path, of which each run's mask is a part.
    """

    lengths: list[int]
    key_lengths: list[int]
    keys: Tensor
    causal: Tensor


def prepare(subtree_end_T: Tensor, queries_L: Tensor | None = None) -> Runs:
    """Cut a packed sequence into runs.

    Args:
        subtree_end_T: exclusive end of each token's subtree.
        queries_L: increasing storage indices of the tokens that attend; None for all T.
    """
    index = torch.arange(len(subtree_end_T))
    queries = index if queries_L is None else queries_L
    before = queries[:-1]
    begins = torch.ones(len(queries), dtype=torch.bool)
    # The token before is another one, or no ancestor.
    begins[1:] = (queries[1:] > before + 1) | (subtree_end_T[before] <= queries[1:])
    bounds = list(pairwise([*begins.nonzero().flatten().tolist(), len(queries)]))
    keys = []
    for first, end in bounds:
        start = int(queries[first])
        ancestors = (subtree_end_T[:start] > start).nonzero().flatten()
        keys.append(torch.cat((ancestors, index[start : start + end - first])))
    longest = max(map(len, keys))
    return Runs(
        lengths=[end - first for first, end in bounds],
        key_lengths=[len(k) for k in keys],
        keys=torch.cat(keys),
        causal=torch.full((longest, longest), -torch.inf).triu_(1),
    )


def attend(query: Tensor, key: Tensor, value: Tensor, prepared: Runs, scale: float | None) -> Tensor:
    """Attend along the paths.

    Args:
        query: [1, heads, L, head_dim] of the tokens that attend.
        key, value: [1, groups, T, head_dim]; each group serves heads / groups query heads.
        prepared: what :func:`prepare` made of the sequence.
        scale: of the scores; None is 1 / sqrt(head_dim).

    Returns:
        [1, heads, L, head_dim].
    """
    # Gathered once for all runs: a gather for each would cost a gradient as long as the sequence for each.
    keys, values = (x.index_select(2, prepared.keys).split(prepared.key_lengths, dim=2) for x in (key, value))
    causal = prepared.causal.to(query.dtype)
    outputs = []
    for q, k, v in zip(query.split(prepared.lengths, dim=2), keys, values, strict=True):
        ancestors, path = k.shape[2] - q.shape[2], k.shape[2]
        outputs.append(
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=causal[ancestors:path, :path] if ancestors else None,
                is_causal=ancestors == 0,  # spares the masked half, but cannot say that a run begins further down
                scale=scale,
                enable_gqa=True,
            )
        )
    return torch.cat(outputs, dim=2)
