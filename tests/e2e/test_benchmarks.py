"""The benchmarks run from the repository root and end with a line of JSON that a program can read.

Why it matters: docs/performance.md stands on them, and a script that nothing runs breaks unseen. Not exercised: their
sizes, which are tiny here, and whether their times and ratios are good.
"""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from distributed.launch import ROOT, start_ranks


def run_tiny(name: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark at its tiny size and return its last line."""
    with tempfile.TemporaryDirectory() as directory:
        said = start_ranks(1, [str(ROOT / "benchmarks" / f"{name}.py"), "--tiny", *arguments], Path(directory, "log"))
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    assert result["device"]
    return result


def test_tree_training_compares_the_same_step() -> None:
    result = run_tiny("tree_training", "--repetitions", "1")
    assert result["shape"] == "paper"
    assert result["token_ratio"] > 1
    assert result["max_grad_rel_err"] < 1e-5
    assert {"step_time_ratio", "peak_memory_ratio"} <= result.keys()


def test_logprobs_compares_the_same_values() -> None:
    result = run_tiny("logprobs", "--repetitions", "1")
    assert result["max_abs_err"] < 1e-4
    assert {"memory_ratio", "time_ratio"} <= result.keys()


def test_attention_compares_the_same_outputs() -> None:
    result = run_tiny("attention", "--repetitions", "1", "--context-parallel", "2")
    assert result["max_rel_err"] < 1e-5
    assert result["token_ratio"] > 1
    assert {"dense_time_ratio", "flat_memory_ratio"} <= result.keys()
    assert result["context_parallel"]["2"]["pair_balance"] > 0.95
    assert 0 < result["context_parallel"]["2"]["received_over_all"] <= 1


def test_overhead_accounts_for_every_part() -> None:
    result = run_tiny("overhead")
    names = ("scoring", "writing_trees", "reading_trees", "metrics", "advantages", "credit", "schedule", "packing")
    parts = [result[f"{name}_s"] for name in names]
    assert abs(sum(parts) - result["overhead_s"]) < 1e-2 * result["overhead_s"]
    assert 0 < result["overhead_share_of_a_rank"] < result["overhead_share"]


def test_tree_records_are_written() -> None:
    result = run_tiny("tree_records")
    assert result["trees"] == 8
    # 8 trees of 12 trajectories of a few hundred tokens: kilobytes, not bytes and not gigabytes.
    assert 0.001 < result["record_mib"] < 50


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_refit_reaches_vllm() -> None:
    """From a pipeline stage on each of two hosts, the engine on the first."""
    result = run_tiny("refit", "--repetitions", "1", "--pipeline", "2", "--hosts", "2")
    assert result["ranks"] == 2
    assert result["memcpy_ratio_low"] <= result["memcpy_ratio"] <= result["memcpy_ratio_high"]
    assert result["write_s"] < result["refit_s"]
    assert 0 < result["network_bytes"] == result["least_network_bytes"] < result["bytes"] == result["copied_bytes"]


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_sampling_compares_its_sides() -> None:
    result = run_tiny("sampling", "--repetitions", "1")
    of_trees = ("independent_12", "ib_rounds", "ib_barrier_free", "ib_window_4", "ib_replayed")
    for side, trajectories in {"independent_8": 8, **dict.fromkeys(of_trees, 12)}.items():
        assert result[side]["trajectories"] == trajectories
        assert result[side]["occupancy"] <= 1  # more would be a count of work that was not done
    assert result["independent_8"]["token_ratio"] == result["independent_8"]["wall_ratio"] == 1
    free = result["ib_barrier_free"]["token_ratio"]
    assert result["ib_replayed"]["occupancy"] > result["ib_barrier_free"]["occupancy"]  # no request waits for another
    assert result["ib_rounds"]["token_ratio"] == pytest.approx(free, rel=0.05)  # the same trees, but for last bits


def test_whole_step_times_the_phases_of_a_step() -> None:
    result = run_tiny("whole_step", "--repetitions", "1", "--sides", "window_4")["window_4"]
    assert result["train/trajectories_per_prompt"] == 12
    phases = [result[f"time/{name}_s"] for name in ("rollout", "reference_logprobs", "train", "refit")]
    assert 0 < sum(phases) <= result["perf/step_s"]
