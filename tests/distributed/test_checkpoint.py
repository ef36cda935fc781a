"""A checkpoint of the actor is all of it, and any layout can take it over.

Why it matters: an optimizer whose moments come back shifted, or whose step counts twice, trains on without a word.
Continuing is compared bit for bit with never having stopped; every tensor of weights and optimizer is compared after
a save under another layout.

Four gloo ranks, Megatron's own checkpointing. Not exercised: GPUs, file systems of several machines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed.launch import run_ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output: Path = tmp_path_factory.mktemp("checkpoint") / "results.json"
    return run_ranks(4, "checkpoint_worker.py", output)


@pytest.mark.parametrize(
    "kind",
    [
        *("fp32", "bf16", "unsharded", "unsharded_bf16", "untied", "first", "experts", "context"),
        *("later", "later_unsharded"),
    ],
)
def test_goes_on_bit_for_bit(results: dict[str, Any], kind: str) -> None:
    assert results[kind] is True


@pytest.mark.parametrize(
    "layout",
    [
        *("tp1-pp1-vpp1", "tp2-pp1-vpp1", "tp1-pp2-vpp2", "tp2-pp2-vpp2"),
        *("experts-tp1-pp1-ep4", "experts-tp2-pp2-ep2", "context-tp1-pp1-cp1"),
    ],
)
def test_every_layout_takes_it_over(results: dict[str, Any], layout: str) -> None:
    # Warm-up over 3 steps to 0.01 and a line to 0 at step 20: the rate of the fourth step.
    assert results[layout] == {"names": True, "different": [], "lr": pytest.approx(1e-2 * 16 / 17)}


def test_every_rank_writes_its_share(results: dict[str, Any]) -> None:
    # Four data-parallel ranks, each with a fourth of the optimizer state and some of the weights.
    assert len(results["shares"]) == 4
    assert max(results["shares"]) < 1.3 * min(results["shares"])


def test_failure_in_the_background_reaches_all_ranks(results: dict[str, Any]) -> None:
    assert results["one_rank_fails"] == "the disk is full"


def test_another_model_is_refused(results: dict[str, Any]) -> None:
    assert "this checkpoint does not fit the model" in results["other_model"]
