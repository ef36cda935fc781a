"""The whole circle on one GPU: vLLM samples, sleeps, the actor trains in bf16, vLLM wakes with new weights, samples.

Why it matters: sleep, staged wake-up and weights over CUDA IPC run on a GPU alone, and whatever goes wrong there
shows as log-probabilities on which engine and actor do not agree.

A training run of two steps as a user starts it. Skipped where vLLM is not installed. Not exercised: several GPUs.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]


def test_engine_and_actor_agree_after_every_refit(tmp_path: Path) -> None:
    from tiny_job import write_tiny_job
    from toy_models import random_model

    from nemo_ibtpo.reporting.metrics import read_metrics

    recipe = write_tiny_job(tmp_path)
    random_model("qwen3", head_dim=64).save_pretrained(tmp_path / "model")  # of a size that vLLM's kernels take
    settings = ["rollout=vllm", "actor.device=cuda", "model.dtype=bf16", "trainer.max_steps=2", "loss.kl_coef=0.01"]
    engine = ["rollout.vllm.gpu_memory_utilization=0.2", "rollout.max_new_tokens=24"]
    done = subprocess.run(
        [sys.executable, "-m", "nemo_ibtpo.cli", "train", f"recipe={recipe}", *settings, *engine],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    logs = "".join(log.read_text(errors="replace")[-6000:] for log in tmp_path.glob("out/vllm/*.log"))
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:] + logs
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert row["mismatch/token_mult_prob_error"] < 1.05
        assert row["train/grad_norm"] > 0
