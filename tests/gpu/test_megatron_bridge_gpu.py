"""Megatron Bridge exports from our Megatron checkpoint what we export from it.

Why it matters: a conversion that is wrong the same way in both directions survives every round trip. Bridge is a
second opinion about names and layouts: its model, built of Transformer Engine's layers, takes in our checkpoint, and
its exporter writes the Hugging Face weights.

A family that only Bridge knows is built through it (``model.provider=bridge``) and held against transformers, and
converted both ways.

Optional: skipped where ``megatron-bridge`` is not installed or does not import, which it does not without Transformer
Engine. Never run so far.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conversion_models import convert_back, convert_to, weights_of, write_toy_model
from transformers import AutoModelForCausalLM, GemmaConfig, NemotronConfig, PretrainedConfig

from nemo_ibtpo.checkpoints import MEGATRON
from nemo_ibtpo.config.loader import default_values
from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.megatron import parallel
from nemo_ibtpo.megatron.actor import MegatronActor
from nemo_ibtpo.megatron.bridged_weights import load_bridged
from nemo_ibtpo.megatron.checkpoint import load_weights
from nemo_ibtpo.megatron.safetensors_io import SafetensorsDirectory
from nemo_ibtpo.tree.packing import pack_tree
from nemo_ibtpo.tree.tree import ROOT, Tree

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_both_exports_are_the_same(family: str, tmp_path: Path) -> None:
    reason = "megatron-bridge is not installed, or does not import"
    bridge_module = pytest.importorskip("megatron.bridge", reason=reason, exc_type=ImportError)
    source = write_toy_model(tmp_path / "source", family, dtype=torch.bfloat16)
    convert_to(source, tmp_path / "megatron")
    convert_back(tmp_path / "megatron", tmp_path / "ours")

    bridge = bridge_module.AutoBridge.from_hf_pretrained(str(source))
    provider = bridge.to_megatron_provider(load_weights=False)
    provider.finalize()
    chunks = provider.provide_distributed_model(wrap_with_ddp=False)
    load_weights(tmp_path / "megatron" / MEGATRON, chunks)
    theirs = dict(bridge.export_hf_weights(chunks, cpu=True, show_progress=False))

    ours = weights_of(tmp_path / "ours")
    if "lm_head.weight" not in ours:
        theirs.pop("lm_head.weight", None)  # tied: Bridge may name it all the same
    assert theirs.keys() == ours.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}


CONFIGS = [GemmaConfig(**SIZES), NemotronConfig(**SIZES)]


@pytest.mark.parametrize("config", CONFIGS, ids=["gemma", "nemotron"])
def test_a_family_that_only_bridge_knows(config: PretrainedConfig, tmp_path: Path) -> None:
    reason = "megatron-bridge is not installed, or does not import"
    pytest.importorskip("megatron.bridge", reason=reason, exc_type=ImportError)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    weights = SafetensorsDirectory(tmp_path)
    settings = {
        name.removeprefix("actor."): value for name, value in default_values().items() if name.startswith("actor.")
    }
    actor_config = ActorConfig(**settings | {"device": "cuda"})
    context = parallel.initialize(actor_config, 1)
    try:
        actor = MegatronActor(
            load_bridged(tmp_path, weights),
            weights,
            actor=actor_config,
            optimizer=None,
            total_updates=1,
            dtype=torch.bfloat16,
            temperature=1.0,
            keep_reference=False,
            context=context,
        )
        tree, tokens = Tree("t", [1, 2, 3]), list(range(10, 40))
        tree.insert(ROOT, [(tokens, [0.0] * len(tokens))], "eos", round=0)
        logits = actor.logits([pack_tree(tree)])[0]
        exported = dict(actor.named_weights())
    finally:
        parallel.shutdown()
    with torch.no_grad():
        expected = model.cuda().float()(torch.tensor([[1, 2, 3, *tokens]], device="cuda")).logits[0].cpu().numpy()
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())
    assert exported.keys() == set(weights)
    assert [name for name in exported if not torch.equal(exported[name].cpu(), weights[name])] == []


@pytest.mark.parametrize("config", CONFIGS, ids=["gemma", "nemotron"])
def test_conversion_through_bridge(config: PretrainedConfig, tmp_path: Path) -> None:
    """``verify`` loads each checkpoint into Bridge's model, whose layers name what they want of it."""
    reason = "megatron-bridge is not installed, or does not import"
    pytest.importorskip("megatron.bridge", reason=reason, exc_type=ImportError)
    source = write_toy_model(tmp_path / "hf", config=config, dtype=torch.bfloat16)
    convert_to(source, tmp_path / "megatron", provider="bridge", verify=True)
    convert_back(tmp_path / "megatron", tmp_path / "back", provider="bridge", verify=True)
    before, after = weights_of(source), weights_of(tmp_path / "back")
    assert after.keys() == before.keys()
    assert [name for name in after if not torch.equal(after[name], before[name])] == []
