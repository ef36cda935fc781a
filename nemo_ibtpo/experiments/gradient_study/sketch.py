"""Gradients small enough to keep: a linear sketch that preserves inner products.

Every entry of the gradient is added, with a random sign, to one of K sums. Signs are independent, so that::

    E <sketch(x), sketch(y)> = <x, y>        sd of |sketch(x)|^2 / |x|^2  <= about sqrt(2 / K)

(count sketch, Charikar et al. 2002, with the position modulo K in the place of a random bucket). The map is linear:
the sketch of a mean, or of a difference, is the mean or the difference of sketches, and its norm is as exact as any
other. K should be a prime, or at least share no factor with the model's sizes, so that rows of a weight do not pile
up in the same sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


class Sketch:
    """The map from gradients to K sums.

    Args:
        parameters: whose gradients are mapped; one byte is held for each entry.
        size: K.
        seed: of the signs.
    """

    def __init__(self, parameters: Sequence[Tensor], size: int, seed: int) -> None:
        self.size = size
        generator = torch.Generator().manual_seed(seed)
        self._signs = [
            (torch.randint(2, (p.numel(),), generator=generator, dtype=torch.int8) * 2 - 1).to(p.device)
            for p in parameters
        ]

    def __call__(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The sums of one gradient, a tensor for each parameter (None for zero); [K], float64 on the CPU."""
        sums_K = torch.zeros(self.size, dtype=torch.float64)
        for gradient, signs in zip(gradients, self._signs, strict=True):
            if gradient is not None:
                signed = gradient.flatten().float() * signs
                rows = pad(signed, (0, -len(signed) % self.size)).view(-1, self.size)
                sums_K += rows.sum(dim=0, dtype=torch.float64).cpu()
        return sums_K
