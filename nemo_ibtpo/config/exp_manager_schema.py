"""The types of NeMo's ``exp_manager`` block, in NeMo's names; ``exp_manager.py`` says what its keys mean for a run.

As in ``schema.py`` there are no defaults here: they are in ``conf/exp_manager.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointCallbackConfig:
    """When checkpoints are saved, in NeMo's names.

    Attributes:
        every_n_train_steps: steps between checkpoints; null leaves it to checkpoint.save_period.
        save_top_k: checkpoints with the highest validation accuracy that are kept; null leaves it to
            checkpoint.keep_best.
    """

    every_n_train_steps: int | None
    save_top_k: int | None


@dataclass(frozen=True)
class WandBLoggerConfig:
    """A run in Weights & Biases, in NeMo's names.

    Attributes:
        project: that it belongs to; null leaves it to logger.wandb.project.
        name: of the run; null leaves it to name.
        offline: write below the run's directory, for wandb sync; null leaves it to logger.wandb.mode.
    """

    project: str | None
    name: str | None
    offline: bool | None


@dataclass(frozen=True)
class MLflowLoggerConfig:
    """A run in MLflow, in NeMo's names.

    Attributes:
        experiment_name: experiment that it belongs to; null means the name of the exp_manager's.
        tracking_uri: of the server or database; null leaves it to logger.mlflow.tracking_uri.
    """

    experiment_name: str | None
    tracking_uri: str | None


@dataclass(frozen=True)
class ExpManagerConfig:
    """NeMo's ``exp_manager`` block, as far as a run here has a use for it (``config.exp_manager``).

    Attributes:
        explicit_log_dir: the run's directory itself; exp_dir, name and version are not looked at then.
        exp_dir: the run's directory is <exp_dir>/<name>/<version>; null means ./nemo_experiments.
        name: of the experiment; null means default.
        version: of the experiment; null takes NEMO_EXPM_VERSION from the environment, none with resume_if_exists, and
            else a new one.
        use_datetime_version: a new version is the time of the start; otherwise the next version_<n>.
        resume_if_exists: go on from the newest checkpoint in the run's directory.
        resume_ignore_no_checkpoint: begin where there is none; otherwise that is refused.
        resume_from_checkpoint: checkpoint to begin from.
        create_tensorboard_logger: also write TensorBoard scalars.
        create_wandb_logger: also write to Weights & Biases.
        create_mlflow_logger: also write to MLflow.
        max_time_per_run: DD:HH:MM:SS after which a start of the run stops, saves and is to be started again.
        files_to_copy: files that are copied into the run's directory.
    """

    explicit_log_dir: str | None
    exp_dir: str | None
    name: str | None
    version: str | None
    use_datetime_version: bool
    resume_if_exists: bool
    resume_ignore_no_checkpoint: bool
    resume_from_checkpoint: str | None
    create_tensorboard_logger: bool
    create_wandb_logger: bool
    wandb_logger_kwargs: WandBLoggerConfig
    create_mlflow_logger: bool
    mlflow_logger_kwargs: MLflowLoggerConfig
    checkpoint_callback_params: CheckpointCallbackConfig
    max_time_per_run: str | None
    files_to_copy: list[str] | None
