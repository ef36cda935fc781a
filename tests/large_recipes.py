"""The recipes for clusters: their names taken apart, and the models that they train; SmolLM2's beside them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from transformers import LlamaConfig

from nemo_ibtpo.config.paths import recipe_names, recipes_dir

_NAME = re.compile(r"(?:ibtpo|grpo)-(.+)-(\d+)n(\d+)g-tp(\d+)pp(\d+)(?:ep(\d+))?(?:cp(\d+))?(?:-\d+k)?")
LARGE = [name for name in recipe_names() if _NAME.fullmatch(name)]
SMOLLM2 = "smollm2-135m"
SMOLLM2_CONFIG = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    tie_word_embeddings=True,
    architectures=["LlamaForCausalLM"],
)
"""Of SmolLM2-135M-Instruct."""
# As the hub's pages of the models have them.
PARAMETERS = {
    "Llama-3.1-8B-Instruct": 8_030_261_248,
    "Llama-3.3-70B-Instruct": 70_553_706_496,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen3-8B-Base": 8_190_735_360,
    "Qwen3-14B-Base": 14_768_307_200,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-32B": 32_762_123_264,
    SMOLLM2: 134_515_008,
}


@dataclass(frozen=True)
class RecipeLayout:
    """What a recipe's name says."""

    model: str
    ranks: int
    tensor: int
    pipeline: int
    expert: int
    context: int


def layout(name: str) -> RecipeLayout:
    """Take a recipe's name apart; SmolLM2's has no layout in it."""
    if name == SMOLLM2:
        return RecipeLayout(name, 2, 1, 2, 1, 1)
    match = _NAME.fullmatch(name)
    assert match is not None, name
    nodes, gpus, tensor, pipeline, expert, context = (int(size or 1) for size in match.groups()[1:])
    return RecipeLayout(match[1], nodes * gpus, tensor, pipeline, expert, context)


def card(model: str) -> Path:
    """The ``config.json`` that stands in for a model that is not downloaded."""
    return recipes_dir() / "models" / f"{model}.json"
