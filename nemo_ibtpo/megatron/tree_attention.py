"""Attention and rotary positions of a packed tree, as parts that Megatron's GPTModel takes in.

``TreeSequence`` is what a micro-batch says of its shape. It travels to every layer of every pipeline stage as
Megatron's ``packed_seq_params``, which recomputation passes on untouched. ``TreeAttention`` is the
``core_attention`` of every layer: token i attends to token j iff ``j <= i < subtree_end[j]``. Trees never attend
to one another, so each is attended on its own and no mask spans two of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass
class TreeSequence(PackedSeqParams):
    """The shape of a packed sequence of trees.

    Attributes:
        subtree_end: [T] exclusive end of each token's subtree.
        tree_starts: storage index of each tree's first token, padding counted as trees of one token.
    """

    subtree_end: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    tree_starts: list[int] = field(default_factory=list)

    @cached_property
    def segments(self) -> list[tuple[int, int, Tensor]]:
        """(start, end, mask) of each tree; mask [end - start, end - start] is True where row attends to column."""
        ends = [*self.tree_starts[1:], len(self.subtree_end)]
        return [
            (start, end, ancestor_mask(self.subtree_end[start:end] - start))
            for start, end in zip(self.tree_starts, ends, strict=True)
        ]


def ancestor_mask(subtree_end: Tensor) -> Tensor:
    """[T, T] mask that is True where token ``row`` may attend to token ``column``."""
    index = torch.arange(len(subtree_end), device=subtree_end.device)
    return (index[None, :] <= index[:, None]) & (index[:, None] < subtree_end[None, :])


class TreeAttention(torch.nn.Module):
    """Scaled dot-product attention along the paths of packed trees; a ``core_attention`` for Megatron."""

    def __init__(self, config: Any, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        if config.context_parallel_size != 1:
            raise ValueError("tree attention does not run with context_parallel_size > 1")
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        packed_seq_params: TreeSequence,
        **_: Any,
    ) -> Tensor:
        """Attend.

        Args:
            query: [T, 1, heads, head_dim].
            key, value: [T, 1, groups, head_dim]; each group serves heads / groups query heads.
            attention_mask: unused; the mask follows from ``packed_seq_params``.

        Returns:
            [T, 1, heads * head_dim].
        """
        q, k, v = (x.squeeze(1).transpose(0, 1) for x in (query, key, value))  # [heads, T, head_dim]
        if len(k) != len(q):
            k, v = (x.repeat_interleave(len(q) // len(x), dim=0) for x in (k, v))
        outputs = [
            torch.nn.functional.scaled_dot_product_attention(
                q[None, :, start:end],
                k[None, :, start:end],
                v[None, :, start:end],
                attn_mask=mask,
                scale=self.softmax_scale,
            )
            for start, end, mask in packed_seq_params.segments
        ]
        out = torch.cat(outputs, dim=2)[0]  # [heads, T, head_dim]
        return out.transpose(0, 1).reshape(query.shape[0], 1, -1)


class DepthRotaryEmbedding(torch.nn.Module):
    """Rotary angles by depth on the path.

    Megatron's ``rope`` ignores position ids and rotates by storage index, which is wrong for every branch but
    the first. Its ``mrope`` interface hands position ids to the embedding module on every pipeline stage;
    this module takes that place and reads the depth from them.
    """

    inv_freq: Tensor

    def __init__(self, inv_freq: Tensor) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, position_ids: Tensor, mrope_section: list[int], cp_group: Any = None) -> Tensor:
        """Angles [T, 1, 1, head_dim] for ``position_ids`` [1, T]."""
        angles = position_ids[0].float()[:, None] * self.inv_freq[None, :].to(position_ids.device)
        return torch.cat((angles, angles), dim=-1)[:, None, None, :]
