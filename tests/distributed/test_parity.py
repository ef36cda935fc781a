"""The Megatron model computes what transformers computes, under every layout.

Why it matters: the actor's log-probabilities are compared with those of the engine that sampled the tokens, and its
weights go back and forth under Hugging Face names. A wrong shard, mask or rotary position would train another model
than the one that is sampled and exported.

The trees branch with siblings, so a rotary position taken from the storage index shows here. Four gloo ranks; the
vocabulary divides neither by 2 nor by 4. Experts are shared by 1, 2 and 4 ranks, with weights that are scaled to sum
to 1 and with weights that are not. Hosts that share memory are told apart by name alone. Not exercised: bf16, GPUs,
Transformer Engine's grouped experts.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed.launch import run_ranks

LAYOUTS = [
    "tp1-pp1-sp0-vpp1",
    "tp2-pp1-sp0-vpp1",
    "tp2-pp1-sp1-vpp1",
    "tp1-pp2-sp0-vpp1",
    "tp2-pp2-sp0-vpp1",
    "tp2-pp2-sp1-vpp1",
    "tp1-pp2-sp0-vpp2",
    "tp2-pp2-sp1-vpp2",
    "tp1-pp1-sp0-vpp1-ep1-cp2",
    "tp1-pp1-sp0-vpp1-ep1-cp4",
    "tp2-pp1-sp1-vpp1-ep1-cp2",
    "tp1-pp2-sp0-vpp2-ep1-cp2",
]

EXPERT_LAYOUTS = [
    "tp1-pp1-sp0-vpp1-ep1",
    "tp1-pp1-sp0-vpp1-ep2",
    "tp1-pp1-sp0-vpp1-ep4",
    "tp2-pp1-sp1-vpp1-ep1",
    "tp2-pp1-sp1-vpp1-ep2",
    "tp1-pp2-sp0-vpp1-ep2",
    "tp2-pp2-sp1-vpp1-ep2",
    "tp1-pp2-sp0-vpp2-ep2",
    "tp2-pp1-sp1-vpp1-ep2-cp2",
]
CASES = [
    *(f"{family}-{layout}" for family in ("llama", "mistral", "qwen2", "qwen3") for layout in LAYOUTS),
    *(f"{family}-{layout}" for family in ("qwen3_moe", "qwen3_moe_unscaled") for layout in EXPERT_LAYOUTS),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    output: Path = tmp_path_factory.mktemp("parity") / "results.json"
    return run_ranks(4, "parity_worker.py", output)


@pytest.mark.parametrize("case", CASES)
def test_matches_transformers(results: dict[str, dict[str, float]], case: str) -> None:
    assert results[case]["logit_error"] < 1e-4
    assert results[case]["logprob_error"] < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_export_is_bitwise_the_loaded_model(results: dict[str, dict[str, float]], case: str) -> None:
    assert results[case]["names_differ"] == 0
    assert results[case]["different_weights"] == 0


@pytest.mark.parametrize("case", CASES)
def test_every_host_with_an_engine_gets_the_weights(results: dict[str, dict[str, float]], case: str) -> None:
    """By the shards of its own ranks, and over the network where it has not all of them."""
    assert {name: wrong for name, wrong in results[case].items() if name.endswith("wrong") and wrong} == {}
