"""The planner counts what Megatron really allocates, on every rank of several layouts.

Why it matters: a plan that forgets the output layer's copy, the experts' own data-parallel ranks or the float32 main
weights says of a run that it fits, and the run dies hours after it was queued.

Four gloo ranks, Megatron's own model, buffers and optimizer. Optimizer state is compared over all ranks of a stage: a
shard ends where it may, so that ranks differ. Not exercised: what CUDA's allocator adds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed.launch import run_ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    output: Path = tmp_path_factory.mktemp("memory") / "results.json"
    return run_ranks(4, "memory_worker.py", output)


def test_every_rank_holds_as_many_parameters_as_predicted(results: dict[str, list[dict[str, Any]]]) -> None:
    assert len(results) == 11
    for case, ranks in results.items():
        for rank in ranks:
            assert rank["parameters"] == rank["predicted"]["parameters"], (case, rank)


@pytest.mark.parametrize("part", ["weights", "gradients"])
def test_bytes_of_every_rank(results: dict[str, list[dict[str, Any]]], part: str) -> None:
    for case, ranks in results.items():
        for rank in ranks:
            assert rank[part] == pytest.approx(rank["predicted"][part], rel=0.02), (case, rank)


def test_bytes_of_the_optimizer(results: dict[str, list[dict[str, Any]]]) -> None:
    for case, ranks in results.items():
        for stage in {rank["stage"] for rank in ranks}:
            own = [rank for rank in ranks if rank["stage"] == stage]
            held = sum(rank["optimizer"] for rank in own)
            assert held == pytest.approx(sum(rank["predicted"]["optimizer"] for rank in own), rel=0.02), case
