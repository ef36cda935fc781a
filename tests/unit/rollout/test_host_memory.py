"""The memory that weights travel through: what lies where, and who shares it.

Why it matters: vLLM packs a matrix from where it lies, which spares a copy only if the matrix's parts are neighbours.
Not exercised: several ranks and hosts (tests/distributed/test_parity.py), vLLM (test_vllm_engine.py), pinned memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from local_weights import LocalWeights, one_rank
from toy_models import hf_weights, random_model

from nemo_ibtpo.rollout.transport.host_writer import HostWriter
from nemo_ibtpo.rollout.transport.memory import HostMemory
from nemo_ibtpo.rollout.vllm.cpu_weights import _joined


@pytest.fixture(autouse=True)
def _one_rank() -> Iterator[None]:
    with one_rank():
        yield


def test_parts_of_a_matrix_lie_one_behind_the_other() -> None:
    weights = {name: w for name, w in hf_weights(random_model("qwen3")).items() if name != "lm_head.weight"}
    source = LocalWeights(weights)
    writer = HostWriter(source, [0], bucket_bytes=1000)
    assert writer.memory is not None and writer.memory.state == "empty"
    names = [name for bucket in writer.write(source) for name in bucket]
    assert sorted(names) == sorted(weights)
    assert writer.memory.state == "complete"
    memory = writer.memory.weights
    for name, tensor in weights.items():
        assert torch.equal(memory[name], tensor)
    for layer, parts in (("self_attn", "qkv"), ("mlp", ("gate", "up"))):
        names = [f"model.layers.1.{layer}.{part}_proj.weight" for part in parts]
        joined = _joined([memory[name] for name in names])
        assert joined.data_ptr() == memory[names[0]].data_ptr(), "it was copied"
        assert torch.equal(joined, torch.cat([weights[name] for name in names]))
    apart = [memory[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 2)]
    assert torch.equal(_joined(apart), torch.cat(apart))
    writer.close()


def test_an_update_that_does_not_end_is_seen() -> None:
    weights = {"a": torch.ones(4, 4), "b": torch.ones(4)}
    source = LocalWeights(weights)
    writer = HostWriter(source, [0], bucket_bytes=8)
    next(writer.write(source))
    assert writer.memory is not None and writer.memory.state == "partial"
    assert list(writer.write(source)) and writer.memory.state == "complete"
    writer.close()


def test_two_that_share_it_see_the_same() -> None:
    shapes = {"model.norm.weight": (3,), "model.embed.weight": (5, 3)}
    mine = HostMemory(shapes, torch.float32)
    yours = HostMemory(shapes, torch.float32, mine.layout.path)
    third = yours.layout.map(pinned=False)
    name = "model.norm.weight"
    yours.weights[name].fill_(3.0)
    assert (mine.weights[name] == 3.0).all()
    mine.close()
    assert (third[name] == 3.0).all(), "it went with the first of those that share it"
    yours.close()
