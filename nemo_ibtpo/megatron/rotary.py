"""Rotary positions of a packed tree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
