"""The tokens that a truncated distribution (top-p, top-k) kept, as the log-probabilities need them.

The set of each sampled token comes from the engine that drew it and is fixed: whatever the policy becomes, its
log-probabilities, entropies and their gradients are those of the distribution renormalised over that set. Recomputing
the filter from the actor's own logits would let a token fall out of its set as soon as the policy moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """Pairs of a target and a token of its set, by increasing token id, so that a slice of the vocabulary is one run.

    Attributes:
        ids: [M] token ids, global.
        targets: [M] index of the target, in 0 .. N - 1.
    """

    ids: Tensor
    targets: Tensor

    def outside(self, shape: tuple[int, int], first: int) -> Tensor:
        """True for what was cut off, [N, C], of the C tokens from ``first`` on."""
        edges = torch.tensor([first, first + shape[1]], dtype=self.ids.dtype, device=self.ids.device)
        start, end = torch.searchsorted(self.ids, edges).tolist()
        cut_off = torch.ones(shape, dtype=torch.bool, device=self.ids.device)
        cut_off[self.targets[start:end], self.ids[start:end] - first] = False
        return cut_off


def kept_tokens(kept_N: Sequence[bytes], device: torch.device) -> KeptTokens:
    """The sets of some targets as pairs on a device.

    Args:
        kept_N: the ids of each target's set, as the bytes of an int32 array.
        device: of the result.

    Raises:
        ValueError: a token has no set, although others have.
    """
    lengths_N = np.array([len(own) // 4 for own in kept_N], dtype=np.int64)
    if len(kept_N) and lengths_N.min() == 0:
        raise ValueError("some tokens of a micro-batch were drawn from a truncated distribution, others not")
    ids_M = np.frombuffer(b"".join(kept_N), dtype=np.int32).astype(np.int64)
    order = np.argsort(ids_M, kind="stable")
    targets_M = np.repeat(np.arange(len(kept_N)), lengths_N)
    return KeptTokens(*(torch.from_numpy(values[order]).to(device) for values in (ids_M, targets_M)))
