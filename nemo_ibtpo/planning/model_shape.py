"""The sizes of a model, from its ``config.json`` or from the card that comes with the recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.model_directory import Provider, read_config
from nemo_ibtpo.config.paths import recipes_dir


@dataclass(frozen=True)
class ModelShape:
    """What a decoder's memory and work follow from.

    Attributes:
        ffn: channels of the MLP of a layer without experts.
        groups: key/value heads.
        gated: whether an MLP has a gate beside its up projection.
        fused: whether a GPU fuses the MLP's activation, as it does in models that this package builds.
        experts: experts of a layer, 0 for a dense model.
        experts_per_token: experts that a token goes to.
        expert_ffn: channels of one expert.
    """

    hidden: int
    ffn: int
    layers: int
    heads: int
    groups: int
    head_dim: int
    gated: bool
    fused: bool
    vocab: int
    qkv_bias: bool
    qk_norm: bool
    tied: bool
    experts: int
    experts_per_token: int
    expert_ffn: int

    @property
    def query_channels(self) -> int:
        """Channels of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def qkv_channels(self) -> int:
        """Channels of all queries, keys and values of a token."""
        return (self.heads + 2 * self.groups) * self.head_dim

    @property
    def mlp_matrices(self) -> int:
        """Matrices of an MLP or an expert."""
        return 3 if self.gated else 2

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        mlp = self.mlp_matrices * self.hidden * (self.expert_ffn * self.experts if self.experts else self.ffn)
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * (self._attention_and_norms + mlp) + embeddings + self.hidden

    @property
    def matmul_parameters_per_token(self) -> int:
        """Weights that a token is multiplied with: no embedding, and only the experts it goes to."""
        ffn = self.expert_ffn * self.experts_per_token if self.experts else self.ffn
        attention = self.hidden * (self.qkv_channels + self.query_channels)
        router = self.hidden * self.experts
        return self.layers * (attention + router + self.mlp_matrices * self.hidden * ffn) + self.vocab * self.hidden

    @property
    def tensors(self) -> int:
        """Tensors of a checkpoint, about."""
        return self.layers * (8 + self.mlp_matrices * max(1, self.experts)) + 3

    @property
    def _attention_and_norms(self) -> int:
        attention = self.hidden * (self.qkv_channels + self.query_channels)
        bias = self.qkv_channels if self.qkv_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return attention + bias + norms + self.hidden * self.experts


def shape_of(config: dict[str, Any], provider: Provider = "own") -> ModelShape:
    """The sizes in a ``config.json`` as ``read_config`` returns it.

    Args:
        config: its values.
        provider: who builds the model.

    Raises:
        UserError: the file does not say enough of a model that megatron-bridge builds.
    """
    family = config["architectures"][0]
    experts = config["num_experts"] or 0
    return ModelShape(
        hidden=config["hidden_size"],
        ffn=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        groups=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        gated=provider == "own" or _has_gate(config),
        fused=provider == "own",
        vocab=config["vocab_size"],
        qkv_bias=family.startswith("Qwen2"),
        qk_norm=family.startswith("Qwen3"),
        tied=bool(config.get("tie_word_embeddings", config.get("model_type") == "gemma")),
        experts=experts,
        experts_per_token=config["num_experts_per_tok"] if experts else 0,
        expert_ffn=config["moe_intermediate_size"] if experts else 0,
    )


def assumed_through_bridge(shape: ModelShape) -> str:
    """What a plan takes a model to be that megatron-bridge builds, in words."""
    gate, tied = "with a gate" if shape.gated else "without a gate", "tied" if shape.tied else "untied"
    return f"a dense decoder is assumed, MLPs {gate}, embeddings {tied}, no biases but Qwen2's"


# Whether MLPs with these activations have a gate. GELU occurs with one and without.
_GATES = {"silu": True, "swish": True, "relu2": False}


def _has_gate(config: dict[str, Any]) -> bool:
    activation = config.get("hidden_act")
    gated = True if config.get("model_type") == "gemma" else _GATES.get(str(activation))
    if gated is None:
        raise UserError(
            f"model.provider=bridge: config.json (hidden_act {activation}) does not say whether an MLP has a gate, "
            f"which a plan needs; it knows the activations {', '.join(_GATES)} and the model_type gemma"
        )
    return gated


def find_config(model_path: str, provider: Provider = "own") -> tuple[dict[str, Any], Path]:
    """A model's ``config.json``, or the card of that name under ``recipes/models``; and which file it was.

    Weights and tokenizer need not be there; nor does megatron-bridge if it is the provider.

    Raises:
        UserError: there is neither, or the actor cannot build such a model.
    """
    local, card = Path(model_path) / "config.json", recipes_dir() / "models" / f"{Path(model_path).name}.json"
    file = local if local.is_file() else card
    if not file.is_file():
        cards = ", ".join(sorted(path.stem for path in card.parent.glob("*.json")))
        raise UserError(
            f"model.path={model_path}: neither {local} nor a card {card.name} is there to plan with; give a model "
            f"directory, or one that is called like a card: {cards}"
        )
    return read_config(file, provider), file
