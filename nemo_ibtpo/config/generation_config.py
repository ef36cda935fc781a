"""How a model asks to be sampled: its ``generation_config.json``, for an evaluation that wants it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import RolloutConfig

FILE_NAME = "generation_config.json"
# What is taken, and what transformers takes where the file is silent: it leaves its own defaults out when it saves.
TAKEN = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}
# Says nothing of the distribution: lengths are ours, the tokens that end a response are read by the engine's factory.
_IGNORED = {
    "_from_model_config",
    "bos_token_id",
    "cache_implementation",
    "decoder_start_token_id",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "pad_token_id",
    "transformers_version",
    "use_cache",
}
# Values that change nothing.
_NEUTRAL = {
    "diversity_penalty": 0.0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "length_penalty": 1.0,
    "min_length": 0,
    "min_p": 0.0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "typical_p": 1.0,
}


def with_own_sampling(rollout: RolloutConfig, model: Path) -> RolloutConfig:
    """``rollout`` with temperature, top_p, top_k and repetition_penalty of the model's file.

    Args:
        model: directory of a Hugging Face model.

    Raises:
        UserError: there is no such file, it does not say how to sample, or it asks for what no engine here does.
    """
    file = model / FILE_NAME
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"sampling=generation_config: {file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"sampling=generation_config: {file} is corrupt: {error}") from None
    if not isinstance(written, dict):
        raise UserError(f"sampling=generation_config: {file} is corrupt: a JSON object is expected")
    given = {name: value for name, value in written.items() if value is not None and name not in _IGNORED}
    samples = given.pop("do_sample", None)
    for name in sorted(given.keys() - TAKEN.keys()):
        if given[name] not in (False, _NEUTRAL.get(name)):
            raise UserError(
                f"sampling=generation_config: {file} asks for {name}={json.dumps(given[name])}, which no engine here "
                "does; write the other settings as rollout.<name>=<value> instead"
            )
    if not isinstance(samples, bool):
        raise UserError(
            f"sampling=generation_config: {file} does not say do_sample, without which libraries disagree on whether "
            "it samples at all; write rollout.temperature, top_p and top_k instead"
        )
    if not samples:
        # The likeliest token; what the file says of the others has no meaning then.
        taken: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 1}
        taken["repetition_penalty"] = given.get("repetition_penalty", 1.0)
    else:
        taken = {name: given.get(name, default) for name, default in TAKEN.items()}
    for name, value in taken.items():
        valid = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if not (valid or (name == "top_k" and value == 0)) or (name == "top_p" and value > 1):
            raise UserError(f"sampling=generation_config: {file} has {name}={json.dumps(value)}, out of range")
    own: dict[str, Any] = {name: type(TAKEN[name])(value) for name, value in taken.items()}
    return replace(rollout, **own)
