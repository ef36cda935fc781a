"""Toy models on disk, and conversions of them, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from toy_models import VOCAB, config_of
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from nemo_ibtpo.conversion.convert import hf_to_megatron, megatron_to_hf
from nemo_ibtpo.reporting.progress import RunConsole


def write_toy_model(
    directory: Path,
    family: str = "qwen3",
    *,
    tied: bool | None = None,
    dtype: torch.dtype = torch.float32,
    shard: str = "20KB",
    config: PreTrainedConfig | None = None,
    change: str | None = None,
) -> Path:
    """Write a whole Hugging Face directory of a random model; ``change`` names a weight to make another."""
    config = config or config_of(family)
    if tied is not None:
        config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.15)
        if change is not None:
            model.get_parameter(change).neg_()
    model.generation_config = GenerationConfig(temperature=0.6, do_sample=True)
    model.to(dtype).save_pretrained(directory, max_shard_size=shard)
    Tokenizer(models.WordLevel({str(i): i for i in range(VOCAB)}, "0")).save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return directory


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    """All weights of a Hugging Face directory."""
    return {name: w for file in sorted(directory.glob("*.safetensors")) for name, w in load_file(file).items()}


def convert_to(source: Path, output: Path, **options: Any) -> None:
    """``nemo-ibtpo convert hf-to-megatron``."""
    options = {"provider": "own", "dtype": None, "force": False, "verify": False} | options
    hf_to_megatron(source, output, console=RunConsole(0), **options)


def convert_back(source: Path, output: Path, **options: Any) -> None:
    """``nemo-ibtpo convert megatron-to-hf``."""
    options = {"provider": "own", "dtype": None, "max_shard_bytes": 10**9, "force": False, "verify": False} | options
    megatron_to_hf(source, output, console=RunConsole(0), **options)
