"""A micro-batch as the model takes it in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nemo_ibtpo.megatron.tree_attention import TreeSequence
from nemo_ibtpo.tree.microbatches import MicroBatch


def padded_length(length: int, multiple: int) -> int:
    """``length`` rounded up to a multiple."""
    return -(-length // multiple) * multiple


class ModelInputs:
    """A micro-batch as tensors on the device, padded with tokens that are trees of their own.

    Attributes:
        tokens, depth: [T_padded].
        predecessor: [T].
        in_loss: [N] storage indices of the tokens whose loss is computed.
        fields: the micro-batch's fields at those tokens, [N] each.
        sequence: the tree's shape, for the attention.
    """

    def __init__(self, batch: MicroBatch, multiple: int, device: torch.device) -> None:
        packed = batch.packed
        padding = padded_length(len(packed), multiple) - len(packed)
        alone = np.arange(len(packed), len(packed) + padding) + 1

        def to_device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        self.tokens = to_device(np.pad(packed.tokens, (0, padding)))
        self.depth = to_device(np.pad(packed.depth, (0, padding)))
        self.predecessor = to_device(packed.predecessor)
        self.sequence = TreeSequence(
            qkv_format="sbhd", subtree_end=to_device(np.concatenate((packed.subtree_end, alone)))
        )
        in_loss = np.flatnonzero(packed.loss_mask)
        self.in_loss = to_device(in_loss)
        self.fields = {name: to_device(values[in_loss]) for name, values in batch.fields.items()}
