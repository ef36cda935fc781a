"""``slurm/`` on a real Slurm: two nodes on this machine, two ranks each, TP2 x PP2 across them.

Why it matters: a launcher is right when a job that is warned, killed and restarted at night ends in the morning with
the model that an undisturbed one has. Real: munge, slurmctld, two slurmd, sbatch, srun, requeueing, arrays and
dependencies, torchrun over both nodes, gloo, checkpoints. Runs are compared bit by bit.

The suite takes two jobs of these, where Slurm is installed; ``make test-slurm`` installs it and takes all. Not
exercised: GPUs and NCCL, containers, a node that dies as a whole (Slurm itself queues the job again), real time
limits (``scancel --batch --signal`` sends the same signal), a network file system.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from comparing_runs import assert_same_run
from easy_sums import EASY_SUMS
from safetensors.torch import load_file
from slurm_cluster import Cluster, processes_of_jobs, wait_for, why_not
from transformers import AutoModelForCausalLM

SLURM = Path(__file__).resolve().parents[2] / "slurm"
FULL = os.environ.get("NEMO_IBTPO_SLURM") == "full"
STEPS, PROMPTS, SAVE_PERIOD = (12, 8, 5) if FULL else (6, 4, 5)
# With one tree at a time what a rank samples together, and so the last bits of log-probabilities, depends on no
# clock; with much time for verifiers no reward does.
WORDS = [
    "recipe=tiny",
    "rollout=transformers",
    "rollout.num_replicas=null",
    "rollout.max_new_tokens=64",
    "sampler.max_trees_in_flight=1",
    "sampler.rounds=2",
    *EASY_SUMS,
    "reward.timeout_s=300",
    "data.validation.size=4",
    f"trainer.num_prompts_per_step={PROMPTS}",
    f"trainer.num_prompts_per_update={PROMPTS}",
    f"trainer.max_steps={STEPS}",
    "trainer.val_period=6",
    f"checkpoint.save_period={SAVE_PERIOD}",
]

in_full = pytest.mark.skipif(not FULL, reason="takes minutes: make test-slurm")
pytestmark = [pytest.mark.skipif(why_not() is not None, reason=why_not() or ""), pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


class Job:
    """A submitted job, or a task of an array."""

    def __init__(self, cluster: Cluster, number: str) -> None:
        self.number = number
        self._cluster = cluster

    @property
    def said(self) -> str:
        """What its script has printed."""
        path = self._cluster.directory / f"{self.number}.out"
        return path.read_text() if path.exists() else ""

    def look(self, field: str) -> str:
        """A field of ``scontrol show job``."""
        return self._cluster.job(self.number)[field]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, which has to come true before the job ends."""
        wait_for(lambda: condition() or self._ended(), lambda: self.said)
        assert condition(), f"job {self.number} ended: {self.said[-6000:]}"

    def end(self) -> str:
        """Wait until the job has ended; its state."""
        wait_for(self._ended, lambda: self.said)
        return self.look("JobState")

    def warn(self) -> None:
        """What Slurm sends ahead of the time limit."""
        self._cluster.call("scancel", "--batch", "--signal=USR1", self.number)

    def _ended(self) -> bool:
        return self.look("JobState") in {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


def submit(cluster: Cluster, script: str, *words: str, options: tuple[str, ...] = ()) -> str:
    """Submit a script of ``slurm/``; the number of the job, or of the array."""
    outputs = f"--output={cluster.directory}/{'%A_%a' if any('--array' in o for o in options) else '%j'}.out"
    return cluster.call("sbatch", "--parsable", outputs, *options, str(SLURM / script), *words).strip()


@pytest.fixture(scope="module")
def train(cluster: Cluster, tiny_base_model: Path) -> Callable[..., Job]:
    """``train(output_dir, word ...)`` submits a run on both nodes."""
    settings = {"IBTPO_VENV": sys.prefix, "IBTPO_RANKS_PER_NODE": "2", "OMP_NUM_THREADS": "1", "SLURM_WAIT": "10"}
    cluster.environment.update(settings)

    def start(output: Path, *words: str) -> Job:
        run = [*WORDS, f"model.path={tiny_base_model}", f"output_dir={output}"]
        return Job(cluster, submit(cluster, "train_ibtpo.sh", *run, *words, options=("--nodes=2",)))

    return start


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, train: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output directory of a job that was left alone."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    job = train(output)
    assert job.end() == "COMPLETED", job.said
    assert job.look("Restarts") == "0"
    return output


def logged_steps(output: Path) -> int:
    """The newest step in the metrics."""
    path = output / "metrics.jsonl"
    whole, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
    return json.loads(whole.splitlines()[-1])["step"] if whole else -1


def attempts(output: Path, job: Job) -> list[int]:
    """Step of the newest checkpoint at the start of each attempt. Looks at what an attempt leaves, too."""
    directory = output / "slurm" / job.number
    rows = [line.split("\t") for line in (directory / "attempts.tsv").read_text().splitlines()]
    assert [row[0] for row in rows] == [str(number + 1) for number in range(len(rows))]
    for row in rows:
        attempt = directory / f"attempt-{row[0]}"
        assert {path.name for path in attempt.glob("node-*.log")} == {"node-0.log", "node-1.log"}
        assert "all-reduce of 64 MiB over gloo: right" in (attempt / "preflight.txt").read_text()
        assert row[3] == "n[0-1]"
    assert (output / "slurm" / "latest").resolve() == attempt.resolve()
    return [int(row[1]) for row in rows]


def assert_trained(output: Path, base_model: Path) -> None:
    """The export is a Hugging Face directory, and every weight has moved."""
    before = AutoModelForCausalLM.from_pretrained(base_model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(output / "hf").state_dict()
    assert before.keys() == after.keys()
    assert [name for name, weight in before.items() if torch.equal(weight, after[name])] == []
    assert logged_steps(output) == STEPS


def assert_nothing_is_left(cluster: Cluster) -> None:
    """Processes of jobs have ended, up to what takes a moment after Slurm has noted the end."""
    wait_for(lambda: not processes_of_jobs(cluster.directory), lambda: str(processes_of_jobs(cluster.directory)), 60)


@in_full
def test_a_run_over_two_nodes_ends_with_a_trained_model(undisturbed: Path, tiny_base_model: Path) -> None:
    assert_trained(undisturbed, tiny_base_model)
    assert json.loads((undisturbed / "status.json").read_text())["state"] == "complete"


def test_a_job_that_is_warned_saves_and_goes_on(
    request: pytest.FixtureRequest, cluster: Cluster, train: Callable[..., Job], tiny_base_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job = train(output)
    job.wait_for(lambda: logged_steps(output) >= 1)
    job.warn()
    job.wait_for(lambda: "queued again" in job.said)
    assert "stopped: SIGUSR1" in job.said
    status = json.loads((output / "status.json").read_text())
    assert status["state"] == "requeue"
    assert 1 <= status["step"] < STEPS, "the run was too fast to be warned in its middle"
    assert (output / "checkpoints" / "latest").readlink() == Path(f"step_{status['step']}")

    assert job.end() == "COMPLETED", job.said
    assert job.look("Restarts") == "1"
    assert attempts(output, job) == [0, status["step"]]
    assert_nothing_is_left(cluster)
    assert_trained(output, tiny_base_model)
    if FULL:
        assert_same_run(output, request.getfixturevalue("undisturbed"), STEPS)


@in_full
def test_a_job_whose_step_is_killed_goes_on_from_the_last_checkpoint(
    cluster: Cluster, train: Callable[..., Job], undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job = train(output)
    job.wait_for(lambda: logged_steps(output) > SAVE_PERIOD)
    assert cluster.kill_step(1, job.number)
    job.wait_for(lambda: "processes were lost" in job.said)
    assert json.loads((output / "status.json").read_text())["state"] == "running", (
        "too fast to be killed in its middle"
    )
    assert job.end() == "COMPLETED", job.said
    assert job.look("Restarts") == "1"
    first, second = attempts(output, job)
    assert first == 0 and second in range(SAVE_PERIOD, STEPS, SAVE_PERIOD)
    assert_nothing_is_left(cluster)
    assert_same_run(output, undisturbed, STEPS)


def test_a_broken_recipe_fails_before_anything_starts(
    cluster: Cluster, train: Callable[..., Job], tmp_path: Path
) -> None:
    job = train(tmp_path / "out", "optimizer.learning_rate=1")
    assert job.end() == "FAILED"
    assert job.look("Restarts") == "0"
    assert "unknown key 'optimizer.learning_rate'" in job.said
    assert job.said.splitlines()[-1].endswith("error: this run cannot start")
    assert not (tmp_path / "out").exists()  # where the pre-flight would have its report, and ranks their logs


@in_full
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_nodes_that_lack_gpus_are_told(train: Callable[..., Job], tmp_path: Path) -> None:
    job = train(tmp_path / "out", "actor.device=cuda")
    assert job.end() == "FAILED"
    assert job.look("Restarts") == "0"
    assert "shows 0 GPUs, but 2 ranks are to run there" in job.said
    assert "these nodes cannot run it together" in job.said


@in_full
def test_a_chain_of_jobs_ends_like_one_job(
    cluster: Cluster, tiny_base_model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = [*WORDS, f"model.path={tiny_base_model}", f"output_dir={output}"]
    options = ["--nodes=2", f"--output={cluster.directory}/%j.out"]
    said = cluster.call("bash", str(SLURM / "chain.sh"), "3", *options, str(SLURM / "train_ibtpo.sh"), *words)
    first, second, third = (Job(cluster, line.removeprefix("job ")) for line in said.splitlines())
    first.wait_for(lambda: logged_steps(output) >= 1)
    first.warn()
    assert first.end() == "COMPLETED"
    assert "not queued again (IBTPO_REQUEUE=no)" in first.said
    assert logged_steps(output) < STEPS, "the run was too fast to be warned in its middle"
    assert second.end() == "COMPLETED", second.said
    assert f"complete: the model is in {output}/hf" in second.said
    assert third.end() == "COMPLETED"
    assert "this run is complete" in third.said
    assert {job.look("Restarts") for job in (first, second, third)} == {"0"}
    assert_same_run(output, undisturbed, STEPS)


@in_full
def test_an_array_converts_the_checkpoints_of_a_run(cluster: Cluster, undisturbed: Path) -> None:
    checkpoints = sorted(map(str, (undisturbed / "checkpoints").glob("step_*")))
    for says in ("", "is there already"):
        array = submit(cluster, "convert.sh", *checkpoints, options=("--array=0-1",))
        for task in (Job(cluster, f"{array}_0"), Job(cluster, f"{array}_1")):
            assert task.end() == "COMPLETED", task.said
            assert says in task.said
    names = sorted(path.name for path in undisturbed.glob("hf_*"))
    assert names == [f"hf_{Path(checkpoint).name}" for checkpoint in checkpoints]
    converted, exported = (load_file(undisturbed / name / "model.safetensors") for name in (f"hf_step_{STEPS}", "hf"))
    assert converted.keys() == exported.keys()
    assert all(torch.equal(converted[name], exported[name]) for name in exported)


@in_full
def test_an_evaluation_that_is_warned_goes_on(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    rows = [{"question": f"{n} + {n}", "answer": str(2 * n)} for n in range(40)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        f"model.path={undisturbed}/hf",
        "model.dtype=fp32",
        f"output_dir={tmp_path}/out",
        "device=cpu",
        "rollout=transformers",
        "rollout.max_batch_size=2",
        "rollout.max_new_tokens=64",
        "benchmark=jsonl",
        f"benchmark.data.path={problems}",
        "benchmark.max_prompt_tokens=128",
        "benchmark.template=plain",
        "reward.num_workers=1",
    ]
    array = submit(cluster, "eval.sh", *words, options=("--array=0-1",))
    first, second = (Job(cluster, f"{array}_{task}") for task in (0, 1))
    journal = tmp_path / "out" / "jsonl" / "journal.jsonl"
    first.wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 4)
    first.warn()
    assert first.end() == "COMPLETED", first.said
    assert first.look("Restarts") == "1"
    assert "jsonl: going on after " in first.said
    assert (tmp_path / "out" / "jsonl" / "summary.json").exists()
    assert second.end() == "COMPLETED"
    assert "no benchmark for this task of the array" in second.said
