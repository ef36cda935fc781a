"""Small random Hugging Face models and small random trees for tests that need real ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.core_model_loading import revert_weight_conversion

from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree

VOCAB = 61  # does not divide by 2 or 4, so that the padding of the vocabulary takes part

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def config_of(family: str, head_dim: int = 16) -> PreTrainedConfig:
    """A tiny configuration of a family; between them they cover what the families can ask for."""
    if family == "llama":
        scaling = {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 10000.0,
        }
        return LlamaConfig(**_COMMON, tie_word_embeddings=False, rope_parameters=scaling)
    if family == "qwen2":
        return Qwen2Config(**_COMMON, tie_word_embeddings=True)
    if family == "qwen3":
        return Qwen3Config(**_COMMON, tie_word_embeddings=True, head_dim=head_dim)
    if family == "mistral":
        return MistralConfig(**_COMMON, tie_word_embeddings=False, sliding_window=None)
    if family in ("qwen3_moe", "qwen3_moe_unscaled"):
        return Qwen3MoeConfig(
            **_COMMON,
            tie_word_embeddings=False,
            head_dim=head_dim,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            norm_topk_prob=family == "qwen3_moe",
            experts_implementation="eager",  # the only one in float64
        )
    raise ValueError(family)


def random_model(
    family: str, seed: int = 0, dtype: torch.dtype = torch.float32, head_dim: int = 16, *, key_value_heads: int = 2
) -> PreTrainedModel:
    """A model whose weights are large enough that a wrong position or mask shows in the logits.

    ``head_dim`` is only for the families that have a say in it.
    """
    torch.manual_seed(seed)
    config = config_of(family, head_dim)
    config.num_key_value_heads = key_value_heads
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.2)
            else:
                parameter.normal_(0.0, 0.15)
    return model.eval().to(dtype)  # converted last: the same seed means the same numbers in every dtype


@cache
def shared_model(family: str) -> PreTrainedModel:
    """The same random model each time, for callers that change nothing of it: making one takes half a second."""
    return random_model(family)


def checkpoint_names(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights or gradients of a model under the names of its checkpoint, where each expert has its own."""
    return revert_weight_conversion(model, dict(tensors))


def hf_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What ``save_pretrained`` writes; a tied output layer is there twice."""
    return checkpoint_names(model, model.state_dict())


def random_tree(rng: np.random.Generator, *, rollouts: int = 5, prompt_id: str = "p") -> Tree:
    """A tree with branches at several depths, siblings included; rewards are 0 or 1 and differ."""
    tree = Tree(prompt_id, rng.integers(0, VOCAB, rng.integers(2, 6)).tolist())
    for number in range(rollouts):
        inner = [node.index for node in tree.nodes if not node.is_leaf]
        node = ROOT if number < 2 else int(rng.choice(inner))
        steps = []
        for _ in range(rng.integers(1, 4)):
            length = rng.integers(1, 6)
            steps.append((tuple(rng.integers(0, VOCAB, length).tolist()), tuple((-rng.random(length)).tolist())))
        leaf = tree.insert(node, steps, "eos", round=number)
        if tree.nodes[leaf].reward is None:
            tree.set_reward(leaf, float(number % 2))
    return tree
