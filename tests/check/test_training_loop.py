"""Two steps of training in one process with the embedded engine, from the command line to the exported model.

Why it matters: it is the one test of the whole loop that runs before every commit (``make check``). Real: Hydra,
Megatron's model, optimizer and checkpoint on gloo, sampling, verification, export. Not exercised: more ranks, vLLM
(``tests/e2e/test_train.py``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_job import write_tiny_job

from nemo_ibtpo.reporting.metrics import read_metrics


def train(recipe: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemo_ibtpo.cli", "train", f"recipe={recipe}", "trainer.max_steps=2", *words]
    return subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False
    )


def test_two_steps(tmp_path: Path) -> None:
    recipe = write_tiny_job(tmp_path)
    done = train(recipe)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    output = tmp_path / "out"
    rows = read_metrics(output / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert row["train/trajectories_per_prompt"] == 4  # 3 from the prompt and one round of one branch
        assert row["train/branches_per_tree"] == 1
        assert row["mismatch/token_mult_prob_error"] < 1.001  # engine and actor agree on every sampled token
    before, after = (
        load_file(tmp_path / "model" / "model.safetensors"),
        load_file(output / "hf" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    # Adam's first steps move a weight by about the learning rate, 1e-3, each.
    moved = max((after[name] - before[name]).abs().max().item() for name in before)
    assert 1e-4 < moved < 1e-2
    assert all(torch.isfinite(weight).all() for weight in after.values())

    again = train(recipe)
    assert again.returncode == 0 and "this run is complete: 2 steps" in again.stdout
    refused = train(recipe, "trainer.max_stepss=3")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "did you mean 'trainer.max_steps'" in refused.stderr
