"""A micro-batch as the model and the loss take it in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from nemo_ibtpo.losses import LossInputs
from nemo_ibtpo.megatron.kept_tokens import kept_tokens
from nemo_ibtpo.megatron.tree_attention import ContextShare, TreeSequence
from nemo_ibtpo.tree.context_parallel import deal, keys_of_ranks
from nemo_ibtpo.tree.packing import FloatArray, IntArray, PackedBatch


class ModelInputs:
    """This rank's share of a micro-batch as tensors on the device, padded with tokens that are trees of their own.

    The share is the whole micro-batch unless the sequence is dealt over context-parallel ranks. Whose log-probs are
    computed here then follows from where the *predecessors* lie: a hidden state predicts every token that follows it,
    and at a branch these may lie on several ranks. The loss always sees the whole micro-batch.

    Args:
        batch: the whole micro-batch, the same on all context-parallel ranks.
        multiple: what L must be a multiple of.
        context: the context-parallel group.

    Attributes:
        num_tokens: T, without padding.
        tokens, depth: [L] of this rank's tokens.
        in_loss: [N] storage indices of the tokens whose loss is computed, on whatever rank.
        targets: [M] those of them whose predecessors are here.
        rows: [M] place of the predecessor of each among this rank's tokens.
        kept: what the targets were drawn from; None if it was the whole vocabulary.
        sequence: the tree's shape, for the attention.
    """

    def __init__(self, batch: PackedBatch, multiple: int, device: torch.device, context: dist.ProcessGroup) -> None:
        dealt = deal(batch.depth, multiple, context.size())
        own = dealt[context.rank()]
        padding = dealt.size - len(batch)
        alone = np.arange(len(batch), dealt.size) + 1
        self._batch, self._device, self.num_tokens = batch, device, len(batch)
        self.tokens = self._to_device(np.pad(batch.tokens, (0, padding))[own])
        self.depth = self._to_device(np.pad(batch.depth, (0, padding))[own])
        subtree_end = np.concatenate((batch.subtree_end, alone))
        self._share = self._shared(dealt, subtree_end, context) if context.size() > 1 else None
        self.sequence = TreeSequence(qkv_format="sbhd", subtree_end=self._to_device(subtree_end), share=self._share)
        here, rows = predicted_here(batch, own)
        self._here, self.rows = self._to_device(here), self._to_device(rows)
        self.in_loss = self._to_device(np.flatnonzero(batch.in_loss))
        self.targets = self._to_device(batch.tokens[batch.in_loss][here])
        self.kept = None if batch.kept is None else kept_tokens(batch.kept[batch.in_loss][here].tolist(), device)

    def gather_in_loss(self, values_M: Tensor) -> Tensor:
        """[N] from what each rank has made of its targets; each rank gets the gradients of its own."""
        return values_M if self._share is None else self._share.merge(values_M, self._here, len(self.in_loss))

    def gather_rows(self, rows_L: Tensor) -> Tensor:
        """[T, ...] in the order of the sequence, without padding, from the rows of each rank's tokens."""
        if self._share is not None:
            rows_L = self._share.merge(rows_L, self._share.queries, len(self.sequence.subtree_end))
        return rows_L[: self.num_tokens]

    def for_loss(self, logprobs_N: Tensor, entropies_N: Tensor, denominator: float) -> LossInputs:
        """What the loss sees, from what the model made of the tokens in the loss.

        Without ``old_logprobs`` in the batch the policy before the update is the one of this very pass, which is so
        in the only update of a step: no pass is needed to know its log-probabilities.
        """
        batch = self._batch

        def in_loss(values_T: FloatArray | IntArray) -> Tensor:
            return self._to_device(values_T[batch.in_loss])

        return LossInputs(
            logprobs=logprobs_N,
            entropies=entropies_N,
            old_logprobs=logprobs_N.detach() if batch.old_logprobs is None else in_loss(batch.old_logprobs),
            behaviour_logprobs=in_loss(batch.behaviour_logprobs),
            reference_logprobs=None if batch.reference_logprobs is None else in_loss(batch.reference_logprobs),
            run=self._to_device(batch.runs),
            weight=in_loss(batch.weight),
            positive=in_loss(batch.positive),
            negative=in_loss(batch.negative),
            denominator=denominator,
            lag=None if batch.lag is None else in_loss(batch.lag),
        )

    def _shared(self, dealt: IntArray, subtree_end: IntArray, context: dist.ProcessGroup) -> ContextShare:
        keys, own = keys_of_ranks(dealt, subtree_end), dealt[context.rank()]
        needed_here = np.isin(dealt, keys[context.rank()])
        return ContextShare(
            queries=self._to_device(own),
            sent=[self._to_device(np.flatnonzero(np.isin(own, theirs))) for theirs in keys],
            received=[self._to_device(row[needed]) for row, needed in zip(dealt, needed_here, strict=True)],
            length=dealt.size,
            group=context,
        )

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def predicted_here(batch: PackedBatch, own_L: IntArray) -> tuple[IntArray, IntArray]:
    """The tokens in the loss whose predecessors a rank holds.

    Args:
        own_L: increasing storage indices of the rank's tokens.

    Returns:
        Their places among the tokens in the loss, and those of their predecessors in ``own_L``; [M] each.
    """
    predecessor_N = batch.predecessor[batch.in_loss]
    here = np.flatnonzero(np.isin(predecessor_N, own_L))
    return here, np.searchsorted(own_L, predecessor_N[here])
