"""Megatron loads what ``nemo-ibtpo convert`` writes under any layout; a training checkpoint converts to its export.

Why it matters: the converter writes and reads Megatron's format by itself, one parameter at a time. Here Megatron is
on the other side: actors on four gloo ranks, whose weights start from zeros, load a converted checkpoint; they
train two steps, save weights and optimizer, and export the model as a run does.

The command line in one process, and what it refuses, is tests/unit/conversion. Not exercised: GPUs, and checkpoints
that Transformer Engine's layers wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed.launch import run_ranks

CASES = [
    "llama-dp4",
    "qwen3_moe-ep4",
    "qwen3-tp2-pp2",
    "qwen3-tp2-pp2-bf16",
    "qwen2-tp2-pp2-vpp2",
    "qwen3_moe-tp2-pp2-ep2",
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    output: Path = tmp_path_factory.mktemp("conversion") / "results.json"
    return run_ranks(4, "conversion_worker.py", output)


@pytest.mark.parametrize("case", CASES)
def test_megatron_loads_what_was_converted(results: dict[str, dict[str, Any]], case: str) -> None:
    assert results[case]["arrived"]
    assert results[case]["names_differ"] == []
    assert results[case]["shapes_differ"] == []


@pytest.mark.parametrize("case", CASES)
def test_a_training_checkpoint_becomes_the_runs_export(results: dict[str, dict[str, Any]], case: str) -> None:
    assert results[case]["moved"]
    assert results[case]["different"] == []
    assert results[case]["same_files"]
