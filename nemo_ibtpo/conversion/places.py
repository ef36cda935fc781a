"""Where a Megatron checkpoint keeps each parameter: the names and shapes of its ``torch_dist`` format.

Layers that are alike are stacked in one tensor, [layers, ...], and experts in [layers, experts, ...]; see
``docs/checkpoints.md``. Tensors are whole: tensor parallelism shows in the cuts alone, and in the padding of the
vocabulary. Norms are named as Transformer Engine names them, whichever layers wrote the checkpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemo_ibtpo.megatron.architecture import Architecture
from nemo_ibtpo.megatron.weights import FUSED_NORMS, Rule, rules

_OF_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_OF_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.(.+)")
_NORMS = {ours: fused for fused, ours in FUSED_NORMS.items()}
_NORMS_BESIDE_EXPERTS = {ours: fused for ours, fused in _NORMS.items() if not fused.startswith("mlp.")}
VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


@dataclass(frozen=True)
class Place:
    """One parameter in a checkpoint.

    Attributes:
        key: name of the stored tensor.
        index: layer, or layer and expert, in its first dimensions.
        stacked: the sizes of these dimensions.
        shape: of the parameter, uncut and without padding.
        rule: how it is made of Hugging Face tensors.
    """

    key: str
    index: tuple[int, ...]
    stacked: tuple[int, ...]
    shape: tuple[int, ...]
    rule: Rule


def places(arch: Architecture) -> list[Place]:
    """Every parameter of the model, in Hugging Face order."""
    return [_place(name, rule, arch) for name, rule in rules(arch).items()]


def _place(name: str, rule: Rule, arch: Architecture) -> Place:
    shape = rule.shard_shape(1)
    layer = _OF_LAYER.fullmatch(name)
    if layer is None:
        return Place(name, (), (), shape, rule)
    index: tuple[int, ...] = (int(layer[1]),)
    stacked: tuple[int, ...] = (arch.num_layers,)
    norms = _NORMS_BESIDE_EXPERTS if arch.experts else _NORMS
    inside = norms.get(layer[2], layer[2])
    if arch.experts is not None and (expert := _OF_EXPERT.fullmatch(inside)):
        index, stacked = (*index, int(expert[1])), (*stacked, arch.experts.number)
        inside = f"mlp.experts.experts.{expert[2]}"
    return Place(f"decoder.layers.{inside}", index, stacked, shape, rule)
