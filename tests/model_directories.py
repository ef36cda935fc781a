"""Hugging Face model directories that are right in every file, written without torch, for tests that damage them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

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
    save_file({"model.embed_tokens.weight": np.zeros((12, 32), np.float32)}, directory / "model.safetensors")
    Tokenizer(models.WordLevel({str(i): i for i in range(12)}, "0")).save(str(directory / "tokenizer.json"))
    return directory
