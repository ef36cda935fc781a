"""Where metrics go besides ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow.

``metrics.jsonl`` is the record; these are copies for people who look at many runs in one place. A run that goes on
after a stop goes on in the same run of a tracker, whose id is in ``trackers.json``. A tracker cannot take back what
it was given: steps that are trained again after a crash are there twice, the later ones last.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from nemo_ibtpo.config.dotted import by_dotted_key
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import MLflowConfig, RunConfig, WandBConfig

_IDS = "trackers.json"
_MOST_AT_ONCE = 100  # parameters in one call to MLflow
_LONGEST = 500  # characters of a parameter that every MLflow server takes


class Tracker(Protocol):
    """Takes the metrics of one run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take one step's metrics, finite or not."""

    def close(self) -> None:
        """Hand over what is still held back, and end."""


def make_trackers(config: RunConfig, *, is_new: bool) -> list[Tracker]:
    """The trackers that a run asks for.

    Args:
        config: of the run.
        is_new: nothing has been logged yet; otherwise runs of trackers go on.

    Raises:
        UserError: a tracker refuses; says why.
    """
    output, logger = Path(config.output_dir), config.logger
    ids = _RunIds(output / _IDS, is_new)
    trackers: list[Tracker] = []
    if logger.tensorboard:
        trackers.append(TensorBoard(output / "tensorboard"))
    if logger.wandb.enabled:
        trackers.append(WandB(logger.wandb, config, ids))
    if logger.mlflow.enabled:
        trackers.append(MLflow(logger.mlflow, config, ids))
    return trackers


class _RunIds:
    """The ids of this run in the trackers, kept on disk."""

    def __init__(self, path: Path, is_new: bool) -> None:
        self._path = path
        self.known: dict[str, str] = {}
        if path.exists() and not is_new:
            self.known = json.loads(path.read_text(encoding="utf-8"))

    def keep(self, tracker: str, run_id: str) -> None:
        self.known[tracker] = run_id
        self._path.write_text(json.dumps(self.known) + "\n", encoding="utf-8")


class TensorBoard:
    """Scalars for TensorBoard; what an earlier run logged from the first step on is hidden."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._scalars: Any = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        if self._scalars is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._scalars = SummaryWriter(str(self._directory), purge_step=step)
        for name, value in values.items():
            self._scalars.add_scalar(name, value, step)
        self._scalars.flush()

    def close(self) -> None:
        """See :class:`Tracker`."""
        if self._scalars is not None:
            self._scalars.close()


class WandB:
    """A run of Weights & Biases, below ``output_dir/wandb`` where it is offline."""

    def __init__(self, settings: WandBConfig, config: RunConfig, ids: _RunIds) -> None:
        import wandb

        run_id = ids.known.get("wandb", uuid.uuid4().hex[:16])
        try:
            self._run = wandb.init(
                project=settings.project,
                name=config.name,
                dir=config.output_dir,
                mode=settings.mode,
                config=dataclasses.asdict(config),
                id=run_id,
                resume="allow",
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise UserError(f"logger.wandb: {error}; logger.wandb.mode=offline needs no account") from None
        self._run.define_metric("*", step_metric="step")
        ids.keep("wandb", run_id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._run.finish()


class MLflow:
    """A run of MLflow. A server that is away does not stop training: what it missed is sent with the next step."""

    def __init__(self, settings: MLflowConfig, config: RunConfig, ids: _RunIds) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self._unsent: list[Any] = []
        try:
            self._client = MlflowClient(tracking_uri=settings.tracking_uri)
            self._run_id = ids.known.get("mlflow") or self._begin(settings.experiment, config.name)
            ids.keep("mlflow", self._run_id)
            self._client.update_run(self._run_id, status="RUNNING")
            known = self._client.get_run(self._run_id).data.params  # a parameter is written once
            params = [
                Param(key, str(value)[:_LONGEST])
                for key, value in by_dotted_key(dataclasses.asdict(config)).items()
                if key not in known
            ]
            for first in range(0, len(params), _MOST_AT_ONCE):
                self._client.log_batch(self._run_id, params=params[first : first + _MOST_AT_ONCE])
        except (MlflowException, ImportError) as error:
            raise UserError(f"logger.mlflow with tracking_uri={settings.tracking_uri}: {error}") from None

    def _begin(self, experiment: str, name: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found is not None else self._client.create_experiment(experiment)
        run_id: str = self._client.create_run(experiment_id, run_name=name).info.run_id
        return run_id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now = int(time.time() * 1000)
        self._unsent += [Metric(name, value, now, step) for name, value in values.items()]
        try:
            while self._unsent:
                self._client.log_batch(self._run_id, metrics=self._unsent[:_MOST_AT_ONCE])
                del self._unsent[:_MOST_AT_ONCE]
        except MlflowException as error:
            warnings.warn(f"MLflow did not take step {step}, which is kept for the next: {error}", stacklevel=2)

    def close(self) -> None:
        """See :class:`Tracker`."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.set_terminated(self._run_id)
        except MlflowException as error:
            warnings.warn(f"MLflow did not hear of the end of the run: {error}", stacklevel=2)
