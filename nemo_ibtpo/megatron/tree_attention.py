"""Attention of a packed tree, as a part that Megatron's GPTModel takes in.

``TreeSequence`` is what a micro-batch says of its shape. It travels to every layer of every pipeline stage as
Megatron's ``packed_seq_params``, which recomputation passes on untouched. ``TreeAttention`` is the
``core_attention`` of every layer: token i attends to token j iff ``j <= i < subtree_end[j]``.

With context parallelism each rank has a share of the sequence's tokens. It gets the keys and values that its queries
attend to (:class:`ContextShare`), puts them in the order of the sequence, and its queries attend to them by the same
rule, with i and j storage indices in the whole sequence. The backward pass returns the gradients of keys and values
to the ranks that hold the tokens, which sum them. With grouped heads keys and values are small beside queries.

The device chooses the kernel: FlexAttention on a GPU (:mod:`.attention_cuda`), scaled dot-product attention on a
CPU (:mod:`.attention_cpu`). Both are modules with the same two functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from torch import Tensor

from nemo_ibtpo.megatron import attention_cpu, attention_cuda


class AttentionKernel(Protocol):
    """What a kernel's module offers.

    Attributes:
        LENGTH_MULTIPLE: sequences are padded to a multiple of it, with trees of one token.
    """

    LENGTH_MULTIPLE: int

    def prepare(self, subtree_end_T: Tensor, queries_L: Tensor | None = None) -> Any:
        """What ``attend`` needs to know of the sequence and the L tokens that attend, made once per micro-batch."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, prepared: Any, scale: float | None) -> Tensor:
        """[1, heads, L, head_dim] from [1, heads, L, head_dim] and twice [1, groups, T, head_dim]."""


def attention_kernel(device: torch.device) -> AttentionKernel:
    """The kernel that runs on the device."""
    return attention_cuda if device.type == "cuda" else attention_cpu


@dataclass(frozen=True)
class ContextShare:
    """What a context-parallel rank holds of a packed sequence.

    Attributes:
        queries: [L] storage indices of its tokens.
        sent: for each rank, places among these tokens of those whose keys that rank needs.
        received: for each rank, storage indices of the tokens that it sends here.
        length: T.
        group: the ranks that share the sequence, L tokens on each.
    """

    queries: Tensor
    sent: Sequence[Tensor]
    received: Sequence[Tensor]
    length: int
    group: dist.ProcessGroup

    def exchange(self, own_L: Tensor) -> Tensor:
        """[T, ...] in the order of the sequence from the [L, ...] of all ranks; 0 for tokens not needed here.

        A token's gradient is the sum of what all ranks send back.
        """
        rows: Tensor = _Exchange.apply(own_L, self)
        return rows

    def merge(self, own: Tensor, places: Tensor, length: int) -> Tensor:
        """[length, ...] from the rows of all ranks, each at its place; a rank gets the gradients of its own rows."""
        spread = own.new_zeros(length, *own.shape[1:]).index_copy(0, places, own)
        return reduce_from_tensor_model_parallel_region(spread, group=self.group)


class _Exchange(torch.autograd.Function):
    """Rows to the ranks that need them, and their gradients back."""

    @staticmethod
    def forward(ctx: Any, own_L: Tensor, share: ContextShare) -> Tensor:
        ctx.share, ctx.num_own = share, len(own_L)
        rows = _all_to_all(
            own_L.index_select(0, torch.cat(list(share.sent))), share.sent, share.received, share.group
        )
        spread = own_L.new_zeros(share.length, *own_L.shape[1:])
        return spread.index_copy_(0, torch.cat(list(share.received)), rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_T,), share = gradients, ctx.share
        rows = gradient_T.index_select(0, torch.cat(list(share.received)))
        returned = _all_to_all(rows, share.received, share.sent, share.group)
        # In float32, and in the order of the ranks: the same bits each time.
        total = torch.zeros(ctx.num_own, *gradient_T.shape[1:], dtype=torch.float32, device=gradient_T.device)
        for places, part in zip(share.sent, returned.split([len(own) for own in share.sent]), strict=True):
            total[places] += part
        return total.to(gradient_T.dtype), None


def _all_to_all(rows: Tensor, sent: Sequence[Tensor], received: Sequence[Tensor], group: dist.ProcessGroup) -> Tensor:
    """The rows that all ranks have for this one, from those that this one has for each, rank after rank."""
    sizes, expected = [len(own) for own in sent], [len(own) for own in received]
    result = rows.new_empty(sum(expected), *rows.shape[1:])
    dist.all_to_all_single(result, rows.contiguous(), expected, sizes, group=group)
    return result


@dataclass
class TreeSequence(PackedSeqParams):
    """The shape of a packed sequence of trees.

    Attributes:
        subtree_end: [T] exclusive end of each token's subtree. A padding token is a tree of its own: it attends
            to itself and nothing attends to it.
        share: which of the tokens are on this rank; None if all are.
    """

    subtree_end: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    share: ContextShare | None = None

    @cached_property
    def prepared(self) -> Any:
        """What the kernel needs to know of this sequence; all layers share it."""
        queries = None if self.share is None else self.share.queries
        return attention_kernel(self.subtree_end.device).prepare(self.subtree_end, queries)


class TreeAttention(torch.nn.Module):
    """Scaled dot-product attention along the paths of packed trees; a ``core_attention`` for Megatron."""

    def __init__(self, config: Any, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
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
            query: [L, 1, heads, head_dim] of this rank's tokens, which are all T unless the sequence is shared.
            key, value: [L, 1, groups, head_dim]; each group serves heads / groups query heads.
            attention_mask: unused; the mask follows from ``packed_seq_params``.

        Returns:
            [L, 1, heads * head_dim].
        """
        if packed_seq_params.share is not None:
            both = torch.cat((key, value), dim=1)  # one message for the two
            key, value = packed_seq_params.share.exchange(both).split(1, dim=1)
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        kernel = attention_kernel(query.device)
        out = kernel.attend(q, k, v, packed_seq_params.prepared, self.softmax_scale)
        return out.permute(2, 0, 1, 3).reshape(query.shape[0], 1, -1)
