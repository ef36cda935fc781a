"""Training as a job of NeMo-Run: really run by LocalExecutor and, on a Slurm of two nodes here, by SlurmExecutor.

Why this matters: NeMo-Run quotes, packs and starts a command in ways of its own, which only a run shows. On Slurm the
job is stopped in the middle, is queued again by NeMo-Run's batch script and goes on. Not exercised: GPUs, containers.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import Cluster, wait_for, why_not
from tiny_job import write_tiny_job

import nemo_ibtpo
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.nemo import launch, toolkit
from nemo_ibtpo.reporting.metrics import read_metrics

if not toolkit.is_installed():
    pytest.skip("nemo_toolkit is not installed: make test-nemo", allow_module_level=True)

import nemo_run as run

from nemo_ibtpo.nemo import jobs
from nemo_ibtpo.nemo.jobs import slurm_executor, training_script

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.timeout(1800)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", str(tmp_path / "home"))  # read at its import
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # NeMo-Run's commands read it
    return tmp_path / "home"


def test_local_executor_trains(tmp_path: Path, home: Path) -> None:
    recipe = write_tiny_job(tmp_path / "job")
    words = [f"recipe={recipe}", "actor.pipeline_model_parallel_size=2", "trainer.max_steps=1"]
    # A word that a shell, or torchrun, would take apart.
    words.append("""data.prompt_format="{question} $HOME; 'x' (y)\"""")
    command = [sys.executable, "-m", "nemo_ibtpo.nemo.launch", *words, "--executor", "local"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NEMORUN_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "2 ranks = 1 tensor x 2 pipeline" in done.stdout
    output = tmp_path / "job" / "out"
    assert json.loads((output / "status.json").read_text())["state"] == "complete"
    assert (output / "hf" / "model.safetensors").is_file()
    assert compose(str(output / "config.yaml"), []).data.prompt_format == "{question} $HOME; 'x' (y)"


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
def test_a_job_on_slurm_that_stops_is_queued_again_and_goes_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, home: Path
) -> None:
    recipe, output = write_tiny_job(tmp_path / "job"), tmp_path / "job" / "out"
    words = [f"recipe={recipe}", "actor.pipeline_model_parallel_size=2", "checkpoint.save_period=1"]
    options = ["--executor=slurm", "--no-gpus", "--nodes=2", "--ranks-per-node=1", "--time=01:00:00", "--retries=3"]
    command = [sys.executable, "-m", "nemo_ibtpo.nemo.launch", *words, "trainer.max_steps=10", *options]
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        environment = cluster.environment | {"OMP_NUM_THREADS": "1", "NEMORUN_HOME": str(home)}
        subprocess.run([*command, f"--venv={sys.prefix}"], env=environment, check=True, timeout=850)
        job = cluster.call("squeue", "--noheader", "--format=%i").strip()

        def logs() -> str:
            return "".join(path.read_text(errors="replace") for path in home.rglob("*.out"))

        # Once a step is saved, a rank is asked to stop, as slurm/train_ibtpo.sh asks ahead of the limit.
        wait_for((output / "checkpoints" / "latest").exists, logs)
        _, _, rank = json.loads((output / "status.json").read_text())["processes"][1].partition(":")
        os.kill(int(rank), signal.SIGUSR1)
        wait_for(lambda: cluster.job(job)["JobState"] in {"COMPLETED", "FAILED"}, logs)
        assert cluster.job(job)["JobState"] == "COMPLETED", logs()[-6000:]
        assert cluster.job(job)["Restarts"] == "1"
    assert [row["step"] for row in read_metrics(output / "metrics.jsonl")] == list(range(11))
    assert (output / "hf" / "model.safetensors").is_file()
    assert "resuming after step" in logs()


def sbatch_script(home: Path, words: list[str], **options: Any) -> str:
    """What SlurmExecutor would submit."""
    executor = slurm_executor(**options)
    with run.Experiment("ibtpo", executor=executor) as experiment:
        experiment.add(training_script(words), name="train")
        experiment.dryrun(log=False, delete_exp_dir=False)
    (script,) = home.glob("experiments/ibtpo/*/train_sbatch.sh")
    return script.read_text()


def test_slurm_executor_asks_for_whole_nodes_with_one_torchrun_each(home: Path) -> None:
    text = sbatch_script(
        home, ["recipe=tiny", "name=a b"], nodes=2, ranks_per_node=8, time="04:00:00", account="me", retries=20
    )
    flags = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")}
    asked = {"nodes=2", "ntasks-per-node=1", "gpus-per-node=8", "time=04:00:00", "account=me", "exclusive", "mem=0"}
    assert flags >= asked
    assert "TORCHX_MAX_RETRIES=20" in text and "scontrol requeue" in text
    (step,) = (line for line in text.splitlines() if line.startswith("srun "))
    assert re.search(r"--rdzv-endpoint \$head_node_ip:2\d{4} ", step)
    assert "--nnodes 2 --nproc-per-node 8" in step and "--kill-on-bad-exit=1" in step
    (script,) = home.glob("experiments/ibtpo/*/train/scripts/train.sh")
    assert f"--no-python {script}" in step  # what every rank runs
    line = script.read_text().splitlines()[-1]
    assert line == f"cd {Path.cwd()} && exec python3 -m nemo_ibtpo.cli train recipe=tiny 'name=a b'"


def test_slurm_executor_in_a_container_sees_checkout_and_directory(home: Path) -> None:
    text = sbatch_script(
        home,
        ["recipe=tiny"],
        nodes=1,
        ranks_per_node=4,
        time="01:00:00",
        gpus=False,
        container_image="/images/x.sqsh",
    )
    (step,) = (line for line in text.splitlines() if line.startswith("srun "))
    checkout = Path(nemo_ibtpo.__file__).parents[1]
    assert (
        f"--container-image /images/x.sqsh --container-mounts {checkout}:{checkout},{Path.cwd()}:{Path.cwd()},"
        in step
    )
    assert f"export PYTHONPATH={checkout}" in text and "gpus" not in text


@pytest.mark.parametrize(
    ("time", "words", "expected"),
    [
        ("04:00:00", [], "trainer.max_time='03:50:00'"),
        ("2-00:00:30", [], "trainer.max_time='47:50:30'"),
        ("04:00:00", ["trainer.max_time='03:00:00'"], "trainer.max_time='03:00:00'"),
        ("04:00:00", ["trainer.max_time='04:00:00'"], "which is not ahead of --time 04:00:00"),
        ("00:10:00", [], "leaves no 10 minutes to save in"),
        ("240", [], "--time 240: write it as HH:MM:SS"),
    ],
)
def test_the_run_stops_ahead_of_its_jobs_limit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    time: str,
    words: list[str],
    expected: str,
) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(
        jobs, "training_script", lambda words, python: given.append(words) or run.Script(inline="true")
    )
    recipe = write_tiny_job(tmp_path / "job")
    status = launch.main([f"recipe={recipe}", *words, "--executor=slurm", f"--time={time}", "--dry-run"])
    if status:
        assert expected in capsys.readouterr().err and not given
    else:
        assert [word for word in given[0] if "max_time" in word] == [expected]


def test_options_of_slurm_are_refused_for_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_tiny_job(tmp_path / "job")
    assert launch.main([f"recipe={recipe}", "--executor=local", "--account=me"]) == 2
    assert "--account has no meaning for --executor local" in capsys.readouterr().err
