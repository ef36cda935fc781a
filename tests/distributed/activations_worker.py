"""The rank of test_activations.py: one optimizer step for each case, every storage counted."""

from __future__ import annotations

import json
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradient_worker import OPTIMIZER
from parity_worker import actor_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_models import hf_weights
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config, Qwen3MoeConfig

from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.megatron.parallel import initialize, shutdown
from nemo_ibtpo.planning import activations
from nemo_ibtpo.planning.model_shape import shape_of
from nemo_ibtpo.planning.parameters import Layout
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.packing import PackedBatch, concat, pack_tree
from nemo_ibtpo.tree.tree import Tree

TOKENS, CHAINS, VOCAB, LAYERS = 1024, 4, 384, 3
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "wide": LlamaConfig(**SIZES | {"vocab_size": 8192}),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, head_dim=16, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=96, norm_topk_prob=True
    ),
}


class Alive(TorchDispatchMode):
    """Most bytes of storages made within the context that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._alive = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._sizes:
                    self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        self._sizes[storage._cdata] = storage.nbytes()
        self._alive += storage.nbytes()
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._release, storage._cdata)

    def _release(self, key: int) -> None:
        self._alive -= self._sizes.pop(key)


def make_batch() -> PackedBatch:
    rng = np.random.default_rng(0)
    trees = []
    for i in range(CHAINS):
        tree = Tree(str(i), rng.integers(0, VOCAB, 8).tolist())
        length = TOKENS // CHAINS - 8
        tree.insert(ROOT, [(rng.integers(0, VOCAB, length).tolist(), [-1.0] * length)], "eos", round=0)
        trees.append(tree)
    packed = concat([pack_tree(tree) for tree in trees])
    return replace(packed, old_logprobs=packed.behaviour_logprobs)


def check(family: str, recompute: Any, context: Any, *, fused: bool = True) -> dict[str, float]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    config = replace(
        actor_config(1, 1, False, None), recompute=recompute, fused_logprobs=fused, logprob_chunk_tokens=128
    )
    actor = MegatronActor(
        architecture_from_config(model.config),
        hf_weights(model),
        actor=config,
        optimizer=OPTIMIZER,
        total_updates=2,
        dtype=torch.float32,
        temperature=1.0,
        keep_reference=False,
        context=context,
    )
    batch = make_batch()

    def step() -> None:
        actor.train_step([batch], lambda inputs: (-inputs.logprobs.sum() / inputs.denominator, {}), 100)

    step()  # Adam makes its moments
    with Alive() as alive:
        step()
    hf_config = model.config.to_dict() | {"num_experts": getattr(model.config, "num_experts", None)}
    hf_config["architectures"] = [type(model).__name__]
    shape, layout = shape_of(hf_config), Layout(1, 1, 1, 1, 1, 1, 1, True, 4)
    predicted = activations.kept_bytes(shape, layout, config, 0, TOKENS, 1)
    predicted += activations.training_bytes(shape, layout, config, 0, TOKENS)
    return {"peak": alive.peak, "predicted_peak": predicted}


def main() -> None:
    context = initialize(actor_config(1, 1, False, None), seed=0)
    results = {
        f"{family} {recompute}": check(family, recompute, context)
        for family in ("llama", "qwen3", "qwen3_moe")
        for recompute in ("none", "selective", "full")
    }
    results["wide vocabulary, fused"] = check("wide", "full", context)
    results["wide vocabulary, kept"] = check("wide", "full", context, fused=False)
    shutdown()
    Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
