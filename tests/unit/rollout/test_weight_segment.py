"""The memory that weights travel through: what lies where, and who shares it.

Why it matters: vLLM packs a matrix from where it lies, which spares a copy only if the matrix's parts are neighbours.
Not exercised: several ranks and hosts (tests/distributed/test_parity.py), vLLM (test_vllm_engine.py).
"""

from __future__ import annotations

from pathlib import Path

import torch
from toy_models import hf_weights, random_model

from nemo_ibtpo.rollout.transport.segment import WeightSegment
from nemo_ibtpo.rollout.vllm.cpu_weights import _joined


def test_parts_of_a_matrix_lie_one_behind_the_other(tmp_path: Path) -> None:
    model = random_model("qwen3")
    model.save_pretrained(tmp_path)
    segment = WeightSegment(tmp_path, torch.float32)
    weights = {name: tensor for name, tensor in hf_weights(model).items() if name != "lm_head.weight"}
    for name, tensor in segment.checked(weights.items()):
        assert torch.equal(segment.weights[name], tensor)
    assert segment.weights.keys() == weights.keys()
    for layer, parts in (("self_attn", "qkv"), ("mlp", ("gate", "up"))):
        names = [f"model.layers.1.{layer}.{part}_proj.weight" for part in parts]
        joined = _joined([segment.weights[name] for name in names])
        assert joined.data_ptr() == segment.weights[names[0]].data_ptr(), "it was copied"
        assert torch.equal(joined, torch.cat([weights[name] for name in names]))
    apart = [segment.weights[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 2)]
    assert torch.equal(_joined(apart), torch.cat(apart))
    segment.close()


def test_two_that_share_it_see_the_same(tmp_path: Path) -> None:
    model = random_model("qwen2")
    model.save_pretrained(tmp_path)
    mine = WeightSegment(tmp_path, torch.float32)
    yours = WeightSegment(tmp_path, torch.float32, mine.path)
    name = "model.norm.weight"
    yours.weights[name].fill_(3.0)
    assert (mine.weights[name] == 3.0).all()
    mine.close()
    assert (yours.weights[name] == 3.0).all(), "it went with the first of those that share it"
    yours.close()
