"""NeMo's ``exp_manager`` block: what its keys mean for a run. No NeMo is needed.

The block names the run's directory, ``<exp_dir>/<name>/<version>``, and decides some keys of the run, which may then
not be written beside it. A key of NeMo's that asks for something a run here does not do is refused; one that asks for
nothing (a feature switched off, parameters of such a feature) is accepted, so that a block can be taken over.

Invariant (tested by ``tests/with_nemo/test_with_exp_manager.py``): the keys known here are those of NeMo's schema.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.exp_manager_schema import ExpManagerConfig
from nemo_ibtpo.config.paths import did_you_mean
from nemo_ibtpo.config.reference import keys

BLOCK = "exp_manager"
VERSION_VARIABLE = "NEMO_EXPM_VERSION"

# NeMo's keys that a run here has no use for, with the values that ask for nothing, and what there is instead.
_IDLE: dict[str, tuple[tuple[object, ...], str]] = {
    "resume_past_end": ((False,), "a finished run trains on when trainer.max_steps is raised"),
    "summary_writer_kwargs": (({},), "scalars are in <log_dir>/tensorboard"),
    "create_dllogger_logger": ((False,), "metrics go to TensorBoard, Weights & Biases and MLflow"),
    "create_clearml_logger": ((False,), "metrics go to TensorBoard, Weights & Biases and MLflow"),
    "create_neptune_logger": ((False,), "metrics go to TensorBoard, Weights & Biases and MLflow"),
    "mlflow_logger_kwargs.run_name": ((), "the run's name is the recipe's"),
    "mlflow_logger_kwargs.tags": (({},), "there are no tags"),
    "mlflow_logger_kwargs.save_dir": ((), "give tracking_uri"),
    "mlflow_logger_kwargs.prefix": (("",), "metrics keep their names"),
    "mlflow_logger_kwargs.artifact_location": ((), "the server decides it"),
    "mlflow_logger_kwargs.run_id": ((), "a run that goes on knows its id"),
    "mlflow_logger_kwargs.log_model": ((False,), "the model is exported to <log_dir>/hf"),
    "create_checkpoint_callback": ((True,), "a run always has checkpoints; checkpoint.save_period says how often"),
    "create_early_stopping_callback": ((False,), "a run has trainer.max_steps steps"),
    "create_ipl_epoch_stopper_callback": ((False,), "a run has trainer.max_steps steps"),
    "create_preemption_callback": ((True,), "a run always saves and stops on SIGTERM and SIGUSR1"),
    "log_step_timing": ((True, False), ""),  # times are in metrics.jsonl in any case
    "log_delta_step_timing": ((False,), "times of each step and its phases are in metrics.jsonl"),
    "log_tflops_per_sec_per_gpu": ((True, False), ""),  # NeMo computes it for models of its own
    "disable_validation_on_resume": ((True,), "an evaluation that was made is not made again"),
    "ema.enable": ((False,), "there is no average of weights"),
    "create_straggler_detection_callback": ((False,), "there is no detection of stragglers"),
    "create_fault_tolerance_callback": ((False,), "slurm/train_ibtpo.sh and NeMo-Run start a lost job again"),
    "checkpoint_callback_params.filepath": ((), "checkpoints are in <log_dir>/checkpoints"),
    "checkpoint_callback_params.dirpath": ((), "checkpoints are in <log_dir>/checkpoints"),
    "checkpoint_callback_params.filename": ((), "a checkpoint is a directory step_<n>"),
    "checkpoint_callback_params.prefix": ((), "a checkpoint is a directory step_<n>"),
    "checkpoint_callback_params.monitor": (("val/accuracy",), "checkpoints are ranked by val/accuracy"),
    "checkpoint_callback_params.mode": (("max",), "the highest val/accuracy is the best"),
    "checkpoint_callback_params.save_last": ((True,), "the newest checkpoint is always kept"),
    "checkpoint_callback_params.save_weights_only": ((False,), "a checkpoint holds all that is needed to go on"),
    "checkpoint_callback_params.every_n_epochs": ((), "give every_n_train_steps"),
    "checkpoint_callback_params.train_time_interval": ((), "give every_n_train_steps"),
    "checkpoint_callback_params.save_best_model": ((False,), "the model is exported to <log_dir>/hf"),
    "checkpoint_callback_params.always_save_nemo": ((False,), "the model is exported to <log_dir>/hf"),
    "checkpoint_callback_params.save_nemo_on_train_end": ((False,), "the model is exported to <log_dir>/hf"),
    "checkpoint_callback_params.save_on_train_epoch_end": ((False,), "give every_n_train_steps"),
    "checkpoint_callback_params.save_last_n_optim_states": ((-1,), "every checkpoint has its optimizer"),
}
# Sections that are looked into only where a key switches them on.
_SWITCHES = {"wandb_logger_kwargs": "create_wandb_logger", "mlflow_logger_kwargs": "create_mlflow_logger"}
# NeMo's keys that only say how something idle, or something of NeMo's own, is to be done.
_PARAMETERS = {
    "dllogger_logger_kwargs",
    "clearml_logger_kwargs",
    "neptune_logger_kwargs",
    "early_stopping_callback_params",
    "ipl_epoch_stopper_callback_params",
    "step_timing_kwargs",
    "straggler_detection_params",
    "fault_tolerance",
    "seconds_to_sleep",  # ranks wait for rank 0, not for a time
    "ema.decay",
    "ema.cpu_offload",
    "ema.validate_original_weights",
    "ema.every_n_steps",
    "checkpoint_callback_params.verbose",
    "checkpoint_callback_params.auto_insert_metric_name",
    "checkpoint_callback_params.postfix",
    "checkpoint_callback_params.model_parallel_size",
}


def known_keys() -> set[str]:
    """All keys of NeMo's block, dotted where a section of it is looked into."""
    return {*keys(ExpManagerConfig), *_IDLE, *_PARAMETERS}


def without_idle(written: Mapping[str, Any], source: Callable[[str], str]) -> dict[str, Any]:
    """The keys of a block that say something, checked by name, as a nested mapping.

    Args:
        written: the block.
        source: tells where a dotted key was written.

    Raises:
        UserError: a key is unknown, or asks for something that a run does not do.
    """
    kept: dict[str, Any] = {}
    for key, value in _leaves(written):
        switch = _SWITCHES.get(key.partition(".")[0])
        if switch is not None and not written.get(switch):
            continue
        if value is None and any(name.startswith(f"{key}.") for name in known_keys()):
            continue  # a section without content
        full, where = f"{BLOCK}.{key}", source(f"{BLOCK}.{key}")
        if key in keys(ExpManagerConfig):
            node = kept
            *sections, name = key.split(".")
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = value
        elif key in _IDLE:
            accepted, instead = _IDLE[key]
            if value is not None and value not in accepted:
                shown = ", ".join(json.dumps(item) for item in (*accepted, None))
                raise UserError(f"{full}={json.dumps(value, default=repr)} {where}: {instead}; use {shown}")
        elif not any(key == name or key.startswith(f"{name}.") for name in _PARAMETERS):
            guess = did_you_mean(full, [f"{BLOCK}.{name}" for name in known_keys()])
            supported = ", ".join(keys(ExpManagerConfig))
            raise UserError(f"unknown key '{full}' {where}{guess}; supported are {supported}")
    return kept


def decisions(block: ExpManagerConfig, version: str | None) -> dict[str, tuple[Any, str]]:
    """What the block decides for a version of the experiment.

    Returns:
        for a key of the run its value, and the key of the block that decides it.
    """
    checkpoints, wandb, mlflow = (
        block.checkpoint_callback_params,
        block.wandb_logger_kwargs,
        block.mlflow_logger_kwargs,
    )
    resume = block.resume_from_checkpoint or ("auto" if block.resume_if_exists else "never")
    decided: dict[str, tuple[Any, str]] = {
        "output_dir": (str(log_dir(block, version)), "explicit_log_dir" if block.explicit_log_dir else "exp_dir"),
        "checkpoint.resume": (resume, "resume_if_exists"),
        "logger.tensorboard": (block.create_tensorboard_logger, "create_tensorboard_logger"),
        "logger.wandb.enabled": (block.create_wandb_logger, "create_wandb_logger"),
        "logger.mlflow.enabled": (block.create_mlflow_logger, "create_mlflow_logger"),
    }
    if block.create_mlflow_logger:
        experiment = mlflow.experiment_name or experiment_name(block)
        decided["logger.mlflow.experiment"] = (experiment, "mlflow_logger_kwargs.experiment_name")
    mode = None if wandb.offline is None else "offline" if wandb.offline else "online"
    for key, value, by in (
        ("trainer.max_time", block.max_time_per_run, "max_time_per_run"),
        ("checkpoint.save_period", checkpoints.every_n_train_steps, "checkpoint_callback_params.every_n_train_steps"),
        ("checkpoint.keep_best", checkpoints.save_top_k, "checkpoint_callback_params.save_top_k"),
        ("checkpoint.async_save", checkpoints.async_save, "checkpoint_callback_params.async_save"),
        ("name", wandb.name, "wandb_logger_kwargs.name"),
        ("logger.wandb.project", wandb.project, "wandb_logger_kwargs.project"),
        ("logger.wandb.mode", mode, "wandb_logger_kwargs.offline"),
        ("logger.mlflow.tracking_uri", mlflow.tracking_uri, "mlflow_logger_kwargs.tracking_uri"),
    ):
        if value is not None:
            decided[key] = (value, by)
    return decided


def log_dir(block: ExpManagerConfig, version: str | None) -> Path:
    """The run's directory; NeMo's ``log_dir``."""
    if block.explicit_log_dir:
        return Path(block.explicit_log_dir)
    return Path(block.exp_dir or "nemo_experiments") / experiment_name(block) / (version or "")


def experiment_name(block: ExpManagerConfig) -> str:
    """The name of the experiment, which is NeMo's default where the block has none."""
    return block.name or "default"


def is_new_each_time(block: ExpManagerConfig) -> bool:
    """Whether every start makes a version, and with it a directory, of its own."""
    return not (block.explicit_log_dir or given_version(block) or block.resume_if_exists)


def given_version(block: ExpManagerConfig) -> str | None:
    """The version that the block or the environment names."""
    return block.version or os.environ.get(VERSION_VARIABLE) or None


def version_of_this_start(block: ExpManagerConfig) -> str | None:
    """The given version, or a new one where each start has one of its own; for one process of a run."""
    if not is_new_each_time(block):
        return given_version(block)
    if block.use_datetime_version:
        return time.strftime("%Y-%m-%d_%H-%M-%S")
    versions = (re.fullmatch(r"version_(\d+)", path.name) for path in log_dir(block, None).glob("version_*"))
    return f"version_{max((int(match[1]) for match in versions if match), default=-1) + 1}"


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values; of sections only those are entered whose keys are listed one by one."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and any(known.startswith(f"{key}.") for known in known_keys()):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value
