"""Megatron Bridge exports from our Megatron checkpoint what we export from it.

Why it matters: a conversion that is wrong the same way in both directions survives every round trip. Bridge is a
second opinion about names and layouts: its model, built of Transformer Engine's layers, takes in our checkpoint, and
its exporter writes the Hugging Face weights.

Optional: skipped where ``megatron-bridge`` is not installed or does not import, which it does not without Transformer
Engine. Never run so far.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conversion_models import convert_back, convert_to, weights_of, write_toy_model

from nemo_ibtpo.checkpoints import MEGATRON
from nemo_ibtpo.megatron.checkpoint import load_weights

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
