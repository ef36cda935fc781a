"""Training under NeMo's own ``hydra_runner`` and ``exp_manager``, as a NeMo user starts it.

Why this matters: everything else about NeMo's block is tested without NeMo, against what NeMo is believed to do. Here
NeMo does it: the tiny recipe at TP2 x PP2 under torchrun, once with a version of its own and once going on from it.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist
from omegaconf import DictConfig

from nemo_ibtpo.config.exp_manager import known_keys
from nemo_ibtpo.config.exp_manager_schema import ExpManagerConfig
from nemo_ibtpo.config.loader import compose, default_values
from nemo_ibtpo.experiments.base_models.imitation import load_settings, make_base_model
from nemo_ibtpo.nemo import toolkit
from nemo_ibtpo.reporting.metrics import read_metrics
from nemo_ibtpo.reporting.progress import RunConsole

EASY = ["data.train.options.min_terms=3", "data.train.options.max_terms=4"]
# A NeMo user's file: NeMo's block, and a resolver that NeMo alone defines.
RECIPE = """\
defaults: [tiny, {{override /rollout: transformers}}, _self_]
exp_manager:
  exp_dir: {directory}/results
  name: sums
  max_time_per_run: "00:01:00:00"
  create_tensorboard_logger: true
  create_wandb_logger: true
  wandb_logger_kwargs: {{project: sums, offline: true}}
  checkpoint_callback_params: {{every_n_train_steps: 1}}
model: {{path: {directory}/model}}
data: {{train: {{options: {{min_terms: 3, max_terms: 4}}}}, validation: {{size: 8}}}}
trainer:
  num_prompts_per_step: ${{multiply:2,4}}
  num_prompts_per_update: 8
  val_samples_per_prompt: 1
  max_steps: 1
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("job")
    make_base_model(
        directory / "model", replace(load_settings(), num_solutions=2000), compose("tiny", EASY).data, RunConsole(1)
    )
    (directory / "job.yaml").write_text(RECIPE.format(directory=directory))
    return directory


def train(job: Path, *words: str) -> str:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    command = [
        sys.executable,
        *torchrun,
        "-m",
        "nemo_ibtpo.cli",
        "train",
        f"--config-path={job}",
        "--config-name=job",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("NEMO_EXPM_VERSION", None)
    done = subprocess.run(
        [*command, *words], env=environment, capture_output=True, text=True, timeout=850, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(job: Path) -> tuple[Path, str, str]:
    """The directory of an experiment, and what its first start and one that goes on have said."""
    first = train(job)
    (version,) = (job / "results" / "sums").iterdir()  # of all ranks
    second = train(
        job, f"++exp_manager.version={version.name}", "++exp_manager.resume_if_exists=true", "++trainer.max_steps=2"
    )
    return version, first, second


def test_the_tiny_recipe_trains_and_goes_on_in_nemos_directory(runs: tuple[Path, str, str]) -> None:
    log_dir, first, second = runs
    assert "4 ranks = 2 tensor x 2 pipeline" in first and f"Experiments will be logged at {log_dir}" in first
    assert f"Resuming training from checkpoint: {log_dir}/checkpoints/sums-last" in second  # NeMo says it
    assert "resuming after step 1 of 2" in second
    assert [row["step"] for row in read_metrics(log_dir / "metrics.jsonl")] == [0, 1, 2]
    for name in ("checkpoints/step_2", "hf/model.safetensors", "status.json", "config.yaml", "cmd-args.log"):
        assert (log_dir / name).exists(), name
    assert list((log_dir / "tensorboard").glob("events.out.tfevents.*"))
    assert len(list((log_dir / "wandb").glob("offline-run-*"))) == 2


def test_nemo_keeps_the_logs_of_each_start(runs: tuple[Path, str, str]) -> None:
    log_dir, _, _ = runs
    assert "trainer.max_steps=2" in (log_dir / "cmd-args.log").read_text()
    assert "trainer.max_steps=2" not in (log_dir / "run_0" / "cmd-args.log").read_text()
    assert {path.name for path in (log_dir / "run_0").iterdir()} >= {"lightning_logs.txt", "nemo_error_log.txt"}
    assert not (log_dir / "run_0" / "metrics.jsonl").exists()


def test_a_complete_run_says_so(job: Path, runs: tuple[Path, str, str]) -> None:
    log_dir, _, _ = runs
    version = f"++exp_manager.version={log_dir.name}"
    said = train(job, version, "++exp_manager.resume_if_exists=true", "++trainer.max_steps=2")
    assert said.count("this run is complete: 2 steps") == 1
    assert not (log_dir / "run_1").exists()


def test_the_keys_of_the_block_are_nemos() -> None:
    from nemo.utils.exp_manager import CallbackParams
    from nemo.utils.exp_manager import ExpManagerConfig as OfNemo
    from nemo.utils.exp_manager import MLFlowParams as MLflowParams

    assert {key.partition(".")[0] for key in known_keys()} == {field.name for field in dataclasses.fields(OfNemo)}
    for section, of_nemo in (("checkpoint_callback_params", CallbackParams), ("mlflow_logger_kwargs", MLflowParams)):
        inside = {key.removeprefix(f"{section}.") for key in known_keys() if key.startswith(f"{section}.")}
        assert inside == {field.name for field in dataclasses.fields(of_nemo)}


def test_the_defaults_are_nemos() -> None:
    from nemo.utils.exp_manager import ExpManagerConfig as OfNemo

    ours = {key: value for key, value in default_values(ExpManagerConfig).items() if "." not in key}
    assert ours == {key: getattr(OfNemo(), key) for key in ours}


def test_hydra_runner_runs_the_task_and_lets_its_errors_out(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("one: 1\n")
    argv = list(sys.argv)

    def task(config: DictConfig) -> int:
        from hydra.core.hydra_config import HydraConfig

        assert HydraConfig.get().job.config_name == "job"
        assert sys.argv == argv
        if config.one == 3:
            raise KeyError("three")
        return int(config.one)

    assert toolkit.under_hydra_runner(tmp_path / "job.yaml", ["one=2"], task) == 2
    with pytest.raises(KeyError, match="three"):
        toolkit.under_hydra_runner(tmp_path / "job.yaml", ["one=3"], task)
    assert sys.argv == argv


def test_neither_nemo_nor_lightning_starts_torch_distributed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a rank of torchrun inside a Slurm job, where lightning would count tasks of Slurm.
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "0",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_JOB_NAME": "ibtpo",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    made = toolkit.set_up_experiment({"exp_dir": str(tmp_path), "name": "x", "version": "v"}, 1)
    assert made == tmp_path / "x" / "v" and made.is_dir()
    assert not dist.is_initialized()
