"""The types of NeMo's ``exp_manager`` block, in NeMo's names; ``exp_manager.py`` says what its keys mean for a run.

As in ``schema.py`` there are no defaults here: they are in ``conf/exp_manager.yaml``.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from nemo_ibtpo.config.schema import STRICT


@dataclass(config=STRICT, frozen=True)
class CheckpointCallbackConfig:
    """When checkpoints are saved, in NeMo's names."""

    every_n_train_steps: int | None
    """Steps between checkpoints; null leaves it to checkpoint.save_period."""
    save_top_k: int | None
    """Checkpoints with the highest validation accuracy that are kept; null leaves it to checkpoint.keep_best."""
    async_save: bool | None
    """Write checkpoints while training goes on; null leaves it to checkpoint.async_save."""


@dataclass(config=STRICT, frozen=True)
class WandBLoggerConfig:
    """A run in Weights & Biases, in NeMo's names."""

    project: str | None
    """Project that the run belongs to; null leaves it to logger.wandb.project."""
    name: str | None
    """Name of the run; null leaves it to name."""
    offline: bool | None
    """Write below the run's directory, for wandb sync; null leaves it to logger.wandb.mode."""


@dataclass(config=STRICT, frozen=True)
class MLflowLoggerConfig:
    """A run in MLflow, in NeMo's names."""

    experiment_name: str | None
    """Experiment that it belongs to; null means the name of the exp_manager's."""
    tracking_uri: str | None
    """Address of the server or database; null leaves it to logger.mlflow.tracking_uri."""


@dataclass(config=STRICT, frozen=True)
class ExpManagerConfig:
    """NeMo's ``exp_manager`` block, as far as a run here has a use for it (``config.exp_manager``)."""

    explicit_log_dir: str | None
    """The run's directory itself; exp_dir, name and version are not looked at then."""
    exp_dir: str | None
    """The run's directory is <exp_dir>/<name>/<version>; null means ./nemo_experiments."""
    name: str | None
    """Name of the experiment; null means default."""
    version: str | None
    """Version of the experiment; null takes NEMO_EXPM_VERSION from the environment, none with resume_if_exists, and
    else a new one."""
    use_datetime_version: bool
    """A new version is the time of the start; otherwise the next version_<n>."""
    resume_if_exists: bool
    """Go on from the newest checkpoint in the run's directory."""
    resume_ignore_no_checkpoint: bool
    """Begin where there is none; otherwise that is refused."""
    resume_from_checkpoint: str | None
    """Checkpoint to begin from."""
    create_tensorboard_logger: bool
    """Also write TensorBoard scalars."""
    create_wandb_logger: bool
    """Also write to Weights & Biases."""
    wandb_logger_kwargs: WandBLoggerConfig
    create_mlflow_logger: bool
    """Also write to MLflow."""
    mlflow_logger_kwargs: MLflowLoggerConfig
    checkpoint_callback_params: CheckpointCallbackConfig
    max_time_per_run: str | None
    """DD:HH:MM:SS after which a start of the run stops, saves and is to be started again."""
    files_to_copy: list[str] | None
    """Files that are copied into the run's directory."""
