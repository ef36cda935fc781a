"""Attention of a packed tree, as a part that Megatron's GPTModel takes in.

``TreeSequence`` is what a micro-batch says of its shape. It travels to every layer of every pipeline stage as
Megatron's ``packed_seq_params``, which recomputation passes on untouched. ``TreeAttention`` is the
``core_attention`` of every layer: token i attends to token j iff ``j <= i < subtree_end[j]``.

The device chooses the kernel: FlexAttention on a GPU (:mod:`.attention_cuda`), scaled dot-product attention on a
CPU (:mod:`.attention_cpu`). Both are modules with the same two functions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from nemo_ibtpo.megatron import attention_cpu, attention_cuda


class AttentionKernel(Protocol):
    """What a kernel's module offers.

    Attributes:
        LENGTH_MULTIPLE: sequences are padded to a multiple of it, with trees of one token.
    """

    LENGTH_MULTIPLE: int

    def prepare(self, subtree_end_T: Tensor) -> Any:
        """What ``attend`` needs to know of the sequence, made once per micro-batch."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, prepared: Any, scale: float | None) -> Tensor:
        """[1, heads, T, head_dim] from [1, heads, T, head_dim] and twice [1, groups, T, head_dim]."""


def attention_kernel(device: torch.device) -> AttentionKernel:
    """The kernel that runs on the device."""
    return attention_cuda if device.type == "cuda" else attention_cpu


@dataclass
class TreeSequence(PackedSeqParams):
    """The shape of a packed sequence of trees.

    Attributes:
        subtree_end: [T] exclusive end of each token's subtree. A padding token is a tree of its own: it attends
            to itself and nothing attends to it.
    """

    subtree_end: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @cached_property
    def prepared(self) -> Any:
        """What the kernel needs to know of this sequence; all layers share it."""
        return attention_kernel(self.subtree_end.device).prepare(self.subtree_end)


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
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        kernel = attention_kernel(query.device)
        out = kernel.attend(q, k, v, packed_seq_params.prepared, self.softmax_scale)
        return out.permute(2, 0, 1, 3).reshape(query.shape[0], 1, -1)
