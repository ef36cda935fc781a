"""New weights cross hosts once, and only those that a host lacks.

Why it matters: the weights of a large model are the largest thing that a step sends over the network between nodes.

TP2 x PP2 over gloo; each pipeline stage is counted as a host. What a host lacks is worked out here from the model's
tensors. That the right weights arrive is in test_parity.py. Not exercised: NCCL, real networks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.launch import run_ranks
from toy_models import hf_weights, random_model


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output: Path = tmp_path_factory.mktemp("refit") / "results.json"
    return run_ranks(4, "refit_worker.py", output)


def bytes_by_stage(weights: dict[str, torch.Tensor], layers: int, tied: bool) -> tuple[int, int]:
    """Of the weights that one of two pipeline stages alone holds; a tied embedding is on both."""
    stages = [0, 0]
    for name, tensor in weights.items():
        if (name == "lm_head.weight" and tied) or (name == "model.embed_tokens.weight" and tied):
            continue
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else None
        second = layer >= layers // 2 if layer is not None else name != "model.embed_tokens.weight"
        stages[second] += tensor.nbytes
    return stages[0], stages[1]


@pytest.mark.parametrize(("family", "both"), [("llama", True), ("qwen3", False)])
def test_hosts_send_the_least_possible(results: dict[str, Any], family: str, both: bool) -> None:
    """``both``: an engine on each host; otherwise on the first alone, which then sends nothing."""
    model = random_model(family)
    tied = model.config.tie_word_embeddings
    weights = hf_weights(model)
    first, second = bytes_by_stage(weights, model.config.num_hidden_layers, tied)
    ranks = results[family]["ranks"]
    sent = [sum(rank["sent"] for rank in host) for host in (ranks[:2], ranks[2:])]
    received = [sum(rank["received"] for rank in host) for host in (ranks[:2], ranks[2:])]
    copied = [sum(rank["copied"] for rank in host) for host in (ranks[:2], ranks[2:])]
    whole = sum(tensor.nbytes for name, tensor in weights.items() if not (tied and name == "lm_head.weight"))
    assert sent == [first if both else 0, second]
    assert received == [second, first if both else 0]
    assert results[family]["least"] == sum(sent)
    assert copied == [whole, whole if both else 0], "a host's copy is written once"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_no_rank_gathers_the_model(results: dict[str, Any], family: str) -> None:
    ranks, bucket = results[family]["ranks"], results[family]["bucket"]
    for rank in ranks:
        assert 0 < rank["most_staged"] <= bucket
        assert rank["buckets"] > 10
    for host in (ranks[:2], ranks[2:]):
        assert abs(host[0]["copied"] - host[1]["copied"]) <= bucket, "the ranks of a host share the work"
