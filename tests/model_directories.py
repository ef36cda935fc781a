"""Hugging Face model directories, right but for the shapes of weights, written without torch, for tests that damage
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from nemo_ibtpo.config.supported import weight_names

HF_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 12,
}


def write_model_directory(directory: Path, **changes: Any) -> Path:
    """Write config.json, model.safetensors and tokenizer.json; ``changes`` go into the config, None takes out."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in (HF_CONFIG | changes).items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))
    layers = config.get("num_hidden_layers")
    complete = {"num_experts": config.get("num_local_experts"), **config, "num_hidden_layers": layers or 0}
    names = weight_names(complete) if config.get("architectures") else {"model.embed_tokens.weight"}
    save_file({name: np.zeros(2, np.float32) for name in names}, directory / "model.safetensors")
    Tokenizer(models.WordLevel({str(i): i for i in range(12)}, "0")).save(str(directory / "tokenizer.json"))
    return directory
