"""Whether a Hugging Face model and a Megatron checkpoint are the same model: their logits on a sample.

Both are built in float32 on the CPU, one after the other, from what is stored; megatron-bridge's layers are
Transformer Engine's and need a GPU. Megatron's weights start from zeros, so that a weight which the checkpoint does
not bring shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.loader import default_values
from nemo_ibtpo.config.model_directory import Provider
from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.conversion.architectures import architecture_of
from nemo_ibtpo.megatron import parallel
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import Architecture, load_config
from nemo_ibtpo.megatron.weights import rules
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.packing import pack_tree
from nemo_ibtpo.tree.tree import Tree

_SAMPLE_TOKENS = 64
_SEED = 0
# Of the largest logit: float32 through two orders of summation; Transformer Engine multiplies float32 as TF32, which
# keeps 10 bits of a number.
_TOLERANCE: dict[Provider, float] = {"own": 1e-3, "bridge": 2e-2}


def check_verifiable(provider: Provider) -> None:
    """Whether both sides can be run here.

    Raises:
        UserError: the model needs a GPU, and there is none.
    """
    if provider == "bridge" and not torch.cuda.is_available():
        raise UserError(
            "--verify with --provider bridge needs a GPU, since Transformer Engine's layers do not run on a CPU; "
            "leave out --verify"
        )


def verify_logits(hf_model: Path, checkpoint: Path, dtype: torch.dtype, provider: Provider) -> str:
    """Compare the logits of the two on random tokens; a line that says how far they are apart.

    Args:
        hf_model: Hugging Face model directory.
        checkpoint: Megatron's part of a checkpoint (``megatron/``).
        dtype: to which the weights of the converted side were rounded; both sides are rounded to it.
        provider: who builds the Megatron side; :func:`check_verifiable` has been asked.

    Raises:
        UserError: they are further apart than rounding explains.
    """
    disable_progress_bar()
    length = min(_SAMPLE_TOKENS, load_config(hf_model).max_position_embeddings)
    architecture = architecture_of(hf_model, provider, length)
    tokens = np.random.default_rng(_SEED).integers(0, architecture.vocab_size, length)
    expected = _hf_logits(hf_model, tokens, dtype)
    found = _megatron_logits(architecture, checkpoint, tokens, dtype)
    error, scale = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    if not error <= _TOLERANCE[provider] * max(scale, 1.0):
        raise UserError(
            f"verification failed: logits of Hugging Face and Megatron differ by up to {error:.3g} (largest logit "
            f"{scale:.3g}); nothing was written"
        )
    return f"verified: logits of {length} tokens differ by at most {error:.2e} (largest logit {scale:.3g})"


@torch.no_grad()
def _hf_logits(path: Path, tokens: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, local_files_only=True).float().eval()
    logits: np.ndarray = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    return logits


def _megatron_logits(
    architecture: Architecture, checkpoint: Path, tokens: np.ndarray, dtype: torch.dtype
) -> np.ndarray:
    settings = {
        name.removeprefix("actor."): value for name, value in default_values().items() if name.startswith("actor.")
    }
    config = ActorConfig(**settings | {"device": "cpu" if architecture.bridge is None else "cuda"})
    context = parallel.initialize(config, _SEED)
    try:
        actor = MegatronActor(
            architecture,
            _Zeros(architecture),
            actor=config,
            optimizer=None,
            total_updates=1,
            dtype=torch.float32,
            temperature=1.0,
            keep_reference=False,
            context=context,
        )
        actor.load_weights(checkpoint, round_to=dtype)
        tree = Tree("sample", tokens[:1].tolist())
        tree.insert(ROOT, [(tokens[1:].tolist(), [0.0] * (len(tokens) - 1))], "eos", round=0)
        return actor.logits([pack_tree(tree)])[0]
    finally:
        parallel.shutdown()


class _Zeros(Mapping[str, Tensor]):
    """Weights of the right names and shapes that hold nothing."""

    def __init__(self, architecture: Architecture) -> None:
        self._shapes = {name: shape for rule in rules(architecture).values() for name, shape in rule.shapes.items()}

    def __getitem__(self, name: str) -> Tensor:
        return torch.zeros(()).expand(self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
