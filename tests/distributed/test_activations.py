"""Activations are what autograd really keeps, for every way to recompute them.

Why it matters: they are the part of a GPU's memory that nobody can look up, and the one that a user sets.

Counted are the bytes of all storages that are alive at the fullest moment of an optimizer step beyond weights,
gradients and optimizer state, on one CPU rank with Megatron's own layers, float32. Not exercised: the GPU's
kernels, whose
difference is argued in ``planning/activations.py``; several ranks.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed.launch import run_ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    output: Path = tmp_path_factory.mktemp("activations") / "results.json"
    return run_ranks(1, "activations_worker.py", output)


@pytest.mark.parametrize(
    "case",
    [
        *(f"{f} {r}" for f in ("llama", "qwen3", "qwen3_moe") for r in ("none", "selective", "full")),
        "wide vocabulary, fused",
        "wide vocabulary, kept",
    ],
)
def test_fullest_moment_of_a_step(results: dict[str, dict[str, float]], case: str) -> None:
    assert results[case]["peak"] == pytest.approx(results[case]["predicted_peak"], rel=0.1)
