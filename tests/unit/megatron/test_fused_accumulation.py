"""When linear layers add gradients to Megatron's buffers in their own products, and what is said about it.

Why it matters: without fusion each micro-batch writes every gradient once and reads it again; switched on where
no kernel is there, the model cannot be built or its first backward pass fails.

Not exercised: the kernels, which need a GPU (tests/gpu/test_gradients_gpu.py, test_training_gpu.py).
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import layers
from toy_models import config_of

from nemo_ibtpo.config.loader import default_values
from nemo_ibtpo.config.schema import ActorConfig
from nemo_ibtpo.megatron import model
from nemo_ibtpo.megatron.architecture import architecture_from_config
from nemo_ibtpo.megatron.fused_accumulation import apex_not_needed

ACTOR = ActorConfig(**{key[6:]: value for key, value in default_values().items() if key.startswith("actor.")})


@pytest.mark.parametrize(
    ("device", "engine", "apex", "bridged", "on", "why"),
    [
        ("cuda", True, False, False, True, "on, by Transformer Engine"),
        ("cuda", True, True, False, True, "on, by Transformer Engine"),
        ("cuda", False, True, False, True, "on, by apex (fused_weight_gradient_mlp_cuda)"),
        ("cuda", False, False, False, False, "off: neither transformer-engine nor apex"),
        ("cuda", True, False, True, False, "off: apex with fused_weight_gradient_mlp_cuda is not installed"),
        ("cuda", True, True, True, True, "on, by apex"),
        ("cpu", True, True, False, False, "off: it needs a GPU"),
    ],
)
def test_where_it_is_on(
    monkeypatch: pytest.MonkeyPatch, device: str, engine: bool, apex: bool, bridged: bool, on: bool, why: str
) -> None:
    monkeypatch.setattr(model, "HAVE_TE", engine)
    monkeypatch.setattr(layers, "_grad_accum_fusion_available", apex)
    architecture: Any = SimpleNamespace(bridge=object() if bridged else None)
    fusion = model.fusion_of(architecture, torch.device(device))
    assert fusion.on is on
    assert fusion.why.startswith(why)
    if not bridged:
        config = model.transformer_config(
            architecture_from_config(config_of("qwen3")), ACTOR, torch.bfloat16, torch.device(device)
        )
        assert config.gradient_accumulation_fusion is on


def test_an_output_layer_beside_transformer_engine_needs_no_apex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_grad_accum_fusion_available", False)
    architecture = architecture_from_config(config_of("qwen3"))
    config = model.transformer_config(architecture, ACTOR, torch.float32, torch.device("cpu"))
    config = replace(config, gradient_accumulation_fusion=True)
    group: Any = SimpleNamespace(size=lambda: 1, rank=lambda: 0)

    def make() -> None:
        layers.ColumnParallelLinear(4, 8, config=config, init_method=lambda _: None, bias=False, tp_group=group)

    with pytest.raises(RuntimeError, match="fused_weight_gradient_mlp_cuda"):
        make()
    with apex_not_needed():
        make()
