"""New weights into a Hugging Face model, in place."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from nemo_ibtpo.config.errors import UserError


@torch.no_grad()
def copy_weights(model: PreTrainedModel, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copy every weight into the model, one after the other, so that a generator is never held in full.

    A weight that shares its memory with another (a tied ``lm_head.weight``) may be absent; where it is given it
    must be the same. After an error some weights are new and some are old.

    Args:
        model: receives the weights in its own dtype and on its own device.
        weights: pairs of Hugging Face name and full tensor.

    Raises:
        UserError: names the weight that is missing, unknown, given twice or of another shape.
    """
    targets = _targets(model)
    written: dict[int, str] = {}  # by address, because tied weights are one tensor under two names
    seen: set[str] = set()
    for name, tensor in weights:
        if name not in targets:
            raise UserError(f"weight update: unknown weight {name!r}; the model has no such parameter")
        if name in seen:
            raise UserError(f"weight update: weight {name!r} is given twice")
        seen.add(name)
        target = targets[name]
        if tensor.shape != target.shape:
            raise UserError(
                f"weight update: {name!r} has shape {tuple(tensor.shape)}, the model's is {tuple(target.shape)}"
            )
        tensor = tensor.to(device=target.device, dtype=target.dtype)
        twin = written.setdefault(target.data_ptr(), name)
        if twin == name:
            target.copy_(tensor)
        elif not torch.equal(target, tensor):
            raise UserError(f"weight update: {name!r} is tied to {twin!r} in the model but differs from it")
    missing = sorted(name for name, target in targets.items() if target.data_ptr() not in written)
    if missing:
        raise UserError(
            f"weight update: {len(missing)} of {len(targets)} weights are missing: {', '.join(missing[:5])}"
        )


# transformers stacks the experts of a layer; a checkpoint has them one by one.
_STACKED_EXPERTS = re.compile(r"(?P<experts>.+\.mlp\.experts)\.(?P<weight>gate_up_proj|down_proj)")


def _targets(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's weights, or views of them, under the names that a checkpoint has."""
    targets: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        match = _STACKED_EXPERTS.fullmatch(name)
        if match is None:
            targets[name] = weight
            continue
        layers = ("gate_proj", "up_proj") if match["weight"] == "gate_up_proj" else ("down_proj",)
        for number, expert in enumerate(weight):
            for layer, part in zip(layers, expert.chunk(len(layers)), strict=True):
                targets[f"{match['experts']}.{number}.{layer}.weight"] = part
    return targets
