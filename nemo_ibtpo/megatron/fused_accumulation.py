"""Fused gradient accumulation: a linear layer's product for its weight's gradient adds to Megatron's float32 buffer.

Without it the gradient of each micro-batch is a tensor of its own, which is added to the buffer afterwards.
Transformer Engine's linear layers do so by themselves. Megatron's own need a module of NVIDIA's apex.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from megatron.core.tensor_parallel import layers


class Fusion(NamedTuple):
    """Whether linear layers accumulate gradients in their products, and why or why not."""

    on: bool
    why: str


def fused_accumulation(device: torch.device, *, engine_installed: bool, bridged: bool) -> Fusion:
    """Decide for a model on ``device``.

    Args:
        engine_installed: linear layers are Transformer Engine's on a GPU.
        bridged: megatron-bridge chose them, and some may be Megatron's own all the same.
    """
    if device.type != "cuda":
        return Fusion(False, "off: it needs a GPU")
    if engine_installed and not bridged:
        return Fusion(True, "on, by Transformer Engine")
    if layers._grad_accum_fusion_available:
        return Fusion(True, "on, by apex (fused_weight_gradient_mlp_cuda)")
    if bridged:
        return Fusion(False, "off: apex with fused_weight_gradient_mlp_cuda is not installed")
    return Fusion(False, "off: neither transformer-engine nor apex with fused_weight_gradient_mlp_cuda is installed")


@contextlib.contextmanager
def apex_not_needed() -> Iterator[None]:
    """Within it Megatron's linear layers can be made for fused accumulation where apex is not installed.

    For an output layer that stands beside Transformer Engine's layers: it asks for apex, and multiplies nothing
    (:class:`.model.OutputLayer`).
    """
    found = layers._grad_accum_fusion_available
    layers._grad_accum_fusion_available = True
    try:
        yield
    finally:
        layers._grad_accum_fusion_available = found
