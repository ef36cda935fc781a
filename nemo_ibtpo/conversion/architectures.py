"""What a model is, whoever knows it: this package or megatron-bridge."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.model_directory import Provider
from nemo_ibtpo.megatron.architecture import Architecture, load_architecture, load_config
from nemo_ibtpo.megatron.bridged_weights import load_bridged


def architecture_of(model: Path, provider: Provider, max_model_len: int | None = None) -> Architecture:
    """Read ``config.json`` of a Hugging Face model, whose weights need not be there.

    Args:
        model: directory with the configuration.
        provider: who knows the model.
        max_model_len: as :func:`.architecture_from_config` takes it; megatron-bridge gets no rotation that needs it.

    Raises:
        UserError: the model cannot be built, or megatron-bridge not be imported.
    """
    if provider == "own":
        return load_architecture(model, max_model_len)
    return load_bridged(model, _weight_names(model))


def _weight_names(model: Path) -> set[str]:
    """The names of the weights that transformers makes for the configuration; nothing is allocated."""
    config = load_config(model)
    try:
        with torch.device("meta"):
            return set(AutoModelForCausalLM.from_config(config).state_dict())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{model}: transformers does not build this model: {reason}") from error
