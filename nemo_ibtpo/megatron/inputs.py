"""A micro-batch as the model and the loss take it in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_ibtpo.losses import LossInputs
from nemo_ibtpo.megatron.kept_tokens import kept_tokens
from nemo_ibtpo.megatron.tree_attention import TreeSequence
from nemo_ibtpo.tree.packing import FloatArray, IntArray, PackedBatch


def padded_length(length: int, multiple: int) -> int:
    """``length`` rounded up to a multiple."""
    return -(-length // multiple) * multiple


class ModelInputs:
    """A micro-batch as tensors on the device, padded with tokens that are trees of their own.

    Attributes:
        tokens, depth: [T_padded].
        predecessor: [T].
        in_loss: [N] storage indices of the tokens whose loss is computed.
        kept: what these tokens were drawn from; None if it was the whole vocabulary.
        sequence: the tree's shape, for the attention.
    """

    def __init__(self, batch: PackedBatch, multiple: int, device: torch.device) -> None:
        padding = padded_length(len(batch), multiple) - len(batch)
        alone = np.arange(len(batch), len(batch) + padding) + 1
        self._batch, self._device = batch, device
        self.tokens = self._to_device(np.pad(batch.tokens, (0, padding)))
        self.depth = self._to_device(np.pad(batch.depth, (0, padding)))
        self.predecessor = self._to_device(batch.predecessor)
        self.sequence = TreeSequence(
            qkv_format="sbhd", subtree_end=self._to_device(np.concatenate((batch.subtree_end, alone)))
        )
        self.in_loss = self._to_device(np.flatnonzero(batch.in_loss))
        self.kept = None if batch.kept is None else kept_tokens(batch.kept[batch.in_loss].tolist(), device)

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

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)
