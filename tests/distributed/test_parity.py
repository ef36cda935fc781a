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
from typing import Any

import pytest
from distributed.launch import run_ranks

# Tensor- and pipeline-parallel size, sequence parallelism, chunks on a stage[, expert-, context-parallel size].
LAYOUTS: list[Any] = [
    (1, 1, False, None),
    (2, 1, False, None),
    (2, 1, True, None),
    (1, 2, False, None),
    (2, 2, False, None),
    (2, 2, True, None),
    (1, 2, False, 2),
    (2, 2, True, 2),
    (1, 1, False, None, 1, 2),
    (1, 1, False, None, 1, 4),
    (2, 1, True, None, 1, 2),
    (1, 2, False, 2, 1, 2),
]
EXPERT_LAYOUTS: list[Any] = [
    (1, 1, False, None, 1),
    (1, 1, False, None, 2),
    (1, 1, False, None, 4),
    (2, 1, True, None, 1),
    (2, 1, True, None, 2),
    (1, 2, False, None, 2),
    (2, 2, True, None, 2),
    (1, 2, False, 2, 2),
    (2, 1, True, None, 2, 2),
]
# Families take turns, two on a layout: one with a head of its own and one whose head is the embedding.
FAMILIES = [("llama", "qwen3"), ("mistral", "qwen2"), ("llama", "qwen2"), ("mistral", "qwen3")]
EXPERT_FAMILIES = [("qwen3_moe",), ("qwen3_moe_unscaled",)]


def _name(family: str, layout: Any) -> str:
    name = f"{family}-tp{layout[0]}-pp{layout[1]}-sp{int(layout[2])}-vpp{layout[3] or 1}"
    return name + "".join(f"-{kind}{size}" for kind, size in zip(("ep", "cp"), layout[4:], strict=False))


CASES = {
    _name(family, layout): (family, layout)
    for layouts, families in ((LAYOUTS, FAMILIES), (EXPERT_LAYOUTS, EXPERT_FAMILIES))
    for number, layout in enumerate(layouts)
    for family in families[number % len(families)]
}


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
