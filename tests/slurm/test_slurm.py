"""``sbatch slurm/train_ibtpo.sh`` on a real Slurm: two nodes on this machine, two ranks each, TP2 x PP2 across them.

Why it matters: a launcher is right when a job that is warned, killed and restarted at night ends in the morning with
the model that an undisturbed one has. Real: munge, slurmctld, two slurmd, sbatch, srun, requeueing, torchrun over
both nodes, gloo, checkpoints. Compared bit by bit with a run under torchrun alone.

Not exercised: GPUs and NCCL, containers, a node that dies as a whole (Slurm itself queues the job again), real time
limits (``scancel --batch --signal`` sends the same signal), a network file system.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster, why_not
from comparing_runs import assert_same_run
from tiny_job import write_tiny_job

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
WORDS = [
    "actor.tensor_model_parallel_size=2",
    "actor.pipeline_model_parallel_size=2",
    "actor.sequence_parallel=true",
    "rollout.num_replicas=null",
    f"trainer.max_steps={STEPS}",
    "trainer.val_period=6",
    "checkpoint.save_period=3",
]

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_job(tmp_path_factory.mktemp("job"))


def submit(cluster: Cluster, *words: str) -> int:
    settings = {"IBTPO_VENV": sys.prefix, "IBTPO_RANKS_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
    cluster.environment.update(settings)
    script = str(ROOT / "slurm" / "train_ibtpo.sh")
    options = ["--parsable", "--nodes=2", f"--output={cluster.directory}/%j.out", f"--chdir={cluster.directory}"]
    return int(cluster.call("sbatch", *options, script, *words))


def said(cluster: Cluster, job: int) -> str:
    """What the job's script printed, and the logs of its nodes."""
    path = cluster.directory / f"{job}.out"
    return path.read_text() if path.exists() else ""


def wait_for(condition: Callable[[], bool], text: Callable[[], str], timeout_s: float = 150) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, text()[-6000:]
        time.sleep(0.2)


def wait_for_end(cluster: Cluster, job: int) -> str:
    """The state in which the job ended."""
    ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
    wait_for(lambda: cluster.job(job)["JobState"] in ends, lambda: said(cluster, job))
    return cluster.job(job)["JobState"]


def logged_steps(output: Path) -> int:
    """The newest step in the metrics."""
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else -1


def test_a_run_that_is_warned_and_killed_ends_like_an_undisturbed_one(
    cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    output = tmp_path / "disturbed"
    job = submit(cluster, f"recipe={recipe}", f"output_dir={output}", *WORDS)

    def text() -> str:
        return said(cluster, job)

    # The warning ahead of the time limit.
    wait_for(lambda: logged_steps(output) >= 1, text)
    cluster.call("scancel", "--batch", "--signal=USR1", str(job))
    wait_for(lambda: "stopped: SIGUSR1" in text() and "queued again" in text(), text)
    stopped = json.loads((output / "status.json").read_text())
    assert stopped["state"] == "requeue"
    assert 1 <= stopped["step"] < STEPS - 3, "the tiny run was too fast to be disturbed in its middle"

    # A node's processes are gone at once.
    wait_for(
        lambda: logged_steps(output) > stopped["step"] and (output / "slurm" / str(job) / "attempt-2").exists(), text
    )
    assert cluster.kill_step(1, job)
    wait_for(lambda: "processes were lost" in text(), text)
    assert logged_steps(output) < STEPS, "the tiny run was too fast to be disturbed in its middle"

    assert wait_for_end(cluster, job) == "COMPLETED", text()
    assert cluster.job(job)["Restarts"] == "2"
    attempts = [line.split("\t") for line in (output / "slurm" / str(job) / "attempts.tsv").read_text().splitlines()]
    assert [fields[0] for fields in attempts] == ["1", "2", "3"]
    assert int(attempts[1][1]) == stopped["step"]
    assert (output / "slurm" / "latest").resolve() == output / "slurm" / str(job) / "attempt-3"
    for attempt in (1, 2, 3):
        directory = output / "slurm" / str(job) / f"attempt-{attempt}"
        assert {path.name for path in directory.glob("node-*.log")} == {"node-0.log", "node-1.log"}
        assert "all-reduce of 64 MiB over gloo: right" in (directory / "preflight.txt").read_text()
    assert not cluster.processes_of_jobs()

    whole = tmp_path / "whole"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "-m", "nemo_ibtpo.cli", "train"]
    subprocess.run(
        [sys.executable, *torchrun, f"recipe={recipe}", f"output_dir={whole}", *WORDS],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert_same_run(output, whole, STEPS)

    # Submitted once more, a complete run says so.
    again = submit(cluster, f"recipe={recipe}", f"output_dir={output}", *WORDS)
    assert wait_for_end(cluster, again) == "COMPLETED"
    assert "this run is complete" in said(cluster, again)
    assert "attempt" not in said(cluster, again)


def test_a_broken_recipe_fails_at_once_with_the_reason(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    job = submit(cluster, f"recipe={recipe}", f"output_dir={tmp_path}/out", "optimizer.learning_rate=1")
    assert wait_for_end(cluster, job) == "FAILED"
    assert time.monotonic() - started < 60  # seconds on an idle machine
    assert "unknown key 'optimizer.learning_rate'" in said(cluster, job)
    assert not (tmp_path / "out").exists()


def test_nodes_that_lack_gpus_are_told(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    job = submit(cluster, f"recipe={recipe}", f"output_dir={tmp_path}/out", *WORDS, "actor.device=cuda")
    assert wait_for_end(cluster, job) == "FAILED"
    text = said(cluster, job)
    assert "shows 0 GPUs, but 2 ranks are to run there" in text
    assert "these nodes cannot run it together" in text
    assert cluster.job(job)["Restarts"] == "0"
