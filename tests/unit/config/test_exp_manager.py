"""NeMo's ``exp_manager`` block and Hydra's flags mean here what they mean in NeMo, without NeMo.

Why this matters: a block is taken over from a NeMo recipe. What it asks for must happen, or be refused with a line;
a directory or a resume that is not the one asked for costs a run. NeMo itself: ``tests/with_nemo``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from model_directories import write_model_directory

from nemo_ibtpo import cli
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.exp_manager import VERSION_VARIABLE
from nemo_ibtpo.config.hydra_flags import arguments_with_recipe
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.launch import job_plan

RECIPE = "defaults: [config, {override /data: reasoning_gym}, _self_]\nmodel: {path: some/model}\n"
RECIPE += "data: {train: {path: chain_sum}}\n"
# As NeMo's recipes have it, switched-off features and their parameters included.
OF_NEMO = """\
exp_manager:
  explicit_log_dir: null
  exp_dir: results
  name: ${name}
  create_wandb_logger: false
  wandb_logger_kwargs: {project: null, name: null}
  resume_if_exists: true
  resume_ignore_no_checkpoint: true
  max_time_per_run: "00:03:45:00"
  create_checkpoint_callback: true
  checkpoint_callback_params:
    save_top_k: 4
    every_n_train_steps: 25
    mode: max
    always_save_nemo: false
    model_parallel_size: ${actor.tensor_model_parallel_size}
  log_step_timing: true
  step_timing_kwargs: {sync_cuda: true, buffer_size: 5}
  ema: {enable: false, decay: 0.99}
"""


@pytest.fixture(autouse=True)
def no_version_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VERSION_VARIABLE, raising=False)


def composed(directory: Path, text: str, *words: str) -> RunConfig:
    (directory / "mine.yaml").write_text(RECIPE + text)
    return compose(str(directory / "mine.yaml"), words)


def test_a_block_of_nemos_decides_the_run(tmp_path: Path) -> None:
    config = composed(tmp_path, OF_NEMO)
    assert config.output_dir == "results/mine"
    assert config.trainer.max_time == "00:03:45:00"
    assert (config.checkpoint.resume, config.checkpoint.save_period, config.checkpoint.keep_best) == ("auto", 25, 4)
    assert config.logger.tensorboard is True


def test_loggers_are_switched_on_in_nemos_names(tmp_path: Path) -> None:
    block = """\
exp_manager:
  exp_dir: results
  resume_if_exists: true
  create_tensorboard_logger: false
  create_wandb_logger: true
  wandb_logger_kwargs: {project: sums, name: first, offline: false}
  create_mlflow_logger: true
"""
    config = composed(tmp_path, block)
    assert (config.name, config.output_dir, config.logger.tensorboard) == ("first", "results/default", False)
    wandb, mlflow = config.logger.wandb, config.logger.mlflow
    assert (wandb.enabled, wandb.project, wandb.mode) == (True, "sums", "online")
    # What is written in terms of output_dir follows it.
    assert (mlflow.enabled, mlflow.experiment, mlflow.tracking_uri) == (
        True,
        "default",
        "sqlite:///results/default/mlflow.db",
    )


def test_what_the_block_leaves_open_stays_as_it_is(tmp_path: Path) -> None:
    without, config = composed(tmp_path, ""), composed(tmp_path, "exp_manager: {explicit_log_dir: here}\n")
    assert without.output_dir == "runs/mine"
    assert (config.output_dir, config.checkpoint.resume) == ("here", "never")
    assert config.trainer == without.trainer
    assert config.checkpoint.save_period == without.checkpoint.save_period
    assert composed(tmp_path, "exp_manager: null\n") == without


@pytest.mark.parametrize(
    ("words", "output_dir"),
    [
        (["exp_manager.version=v1"], "nemo_experiments/default/v1"),
        (["++exp_manager.exp_dir=results", "+exp_manager.name=x", "exp_manager.version=v1"], "results/x/v1"),
        (["++exp_manager.resume_if_exists=true", "++exp_manager.version=v1"], "nemo_experiments/default/v1"),
        (["++exp_manager.explicit_log_dir=here", "++exp_manager.version=v1"], "here"),
    ],
)
def test_the_directory_of_the_run(tmp_path: Path, words: list[str], output_dir: str) -> None:
    assert composed(tmp_path, "", *words).output_dir == output_dir


def test_each_start_has_a_version_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = f"exp_manager: {{exp_dir: {tmp_path}, name: x}}\n"
    found = composed(tmp_path, block).output_dir.removeprefix(f"{tmp_path}/x/")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", found)
    counted = block.replace("}", ", use_datetime_version: false}")
    assert composed(tmp_path, counted).output_dir == f"{tmp_path}/x/version_0"
    (tmp_path / "x" / "version_9").mkdir(parents=True)
    (tmp_path / "x" / "version_10").mkdir()
    assert composed(tmp_path, counted).output_dir == f"{tmp_path}/x/version_11"
    monkeypatch.setenv(VERSION_VARIABLE, "v2")
    assert composed(tmp_path, block).output_dir == f"{tmp_path}/x/v2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{exp_dirr: x}",
            "unknown key 'exp_manager.exp_dirr' in {path} (did you mean 'exp_manager.exp_dir'?); support",
        ),
        ("{resume_if_exists: maybe}", 'exp_manager.resume_if_exists="maybe" in {path}: expected true or false'),
        ("{create_neptune_logger: true}", "exp_manager.create_neptune_logger=true in {path}: metrics go to"),
        ("{ema: {enable: true}}", "exp_manager.ema.enable=true in {path}: there is no average of weights; use false"),
        ("{checkpoint_callback_params: {monitor: val_loss}}", 'ranked by val/accuracy; use "val/accuracy", null'),
        ("{checkpoint_callback_params: {filename: x}}", "a checkpoint is a directory step_<n>; use null"),
        (
            "{create_wandb_logger: true, wandb_logger_kwargs: {entity: me}}",
            "unknown key 'exp_manager.wandb_logger_kwargs",
        ),
        ("{create_checkpoint_callback: false}", "a run always has checkpoints"),
        ("3", "exp_manager in {path} is a section of keys, not 3"),
        ("{exp_dir: '???'}", "exp_manager.exp_dir has no value"),
        ("{exp_dir: x}\noutput_dir: y", "output_dir in {path}: exp_manager.exp_dir decides it"),
        (
            "{max_time_per_run: '1:00:00'}\ntrainer: {max_time: null}",
            "trainer.max_time in {path}: exp_manager.max_time",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        composed(tmp_path, f"exp_manager: {text}\n")
    assert message.replace("{path}", str(tmp_path / "mine.yaml")) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["~exp_manager.name", "+seed=3", "exp_manager.name=a,b", "exp_manager@x.name=y"])
def test_words_that_are_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(UserError):
        composed(tmp_path, "", word)


def test_a_launcher_refuses_a_run_that_could_not_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model_directory(tmp_path / "model")
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("some/model", str(model)))
    words = ["--world-size=1", f"--config-path={tmp_path}", "--config-name=mine", f"exp_manager.exp_dir={tmp_path}"]
    assert job_plan.main(words) == 2
    assert "set exp_manager.resume_if_exists=true" in capsys.readouterr().err
    assert job_plan.main([*words, "exp_manager.resume_if_exists=true"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [f"{tmp_path}/default", "auto", "open"]


def test_hydras_flags_name_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model_directory(tmp_path / "model")
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("some/model", str(model)))
    flags = ["--config-path", str(tmp_path), "--config-name", "mine.yaml"]
    words = ["++trainer.max_steps=3", f"++exp_manager.explicit_log_dir={tmp_path}/log"]
    assert cli.main(["train", *flags, *words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "batch plan of 'mine'" in out and "run of 3 steps" in out and f"written to {tmp_path}/log" in out


def test_flags_without_a_path_name_a_recipe_of_the_package() -> None:
    assert arguments_with_recipe(None, "tiny", ["seed=2"]) == ["recipe=tiny", "seed=2"]
    assert arguments_with_recipe(None, None, ["recipe=tiny"]) == ["recipe=tiny"]


@pytest.mark.parametrize(
    ("path", "name", "words", "message"),
    [("conf", None, [], "needs --config-name"), (None, "tiny", ["recipe=tiny"], "both name the recipe")],
)
def test_flags_that_are_refused(path: str | None, name: str | None, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        arguments_with_recipe(path, name, words)
