"""Weights & Biases and MLflow, the real ones without a network, get what ``metrics.jsonl`` has.

Why this matters: people compare runs there, and a run that goes on must not become a second one. Not
exercised: servers.
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.reporting.metrics import MetricsWriter
from nemo_ibtpo.reporting.trackers import make_trackers


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    config = compose("tiny", [f"output_dir={tmp_path}", "logger.tensorboard=false"])
    assert config.logger.mlflow.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    return config


def log(config: RunConfig, *steps: int, anew: bool) -> str:
    """Log some steps; the run's ids."""
    with MetricsWriter(config.output_dir, make_trackers(config, is_new=anew)) as writer:
        for step in steps:
            writer.write(step, {"train/avg_rate": step / 10, "train/cov": math.nan})
    return (Path(config.output_dir) / "trackers.json").read_text()


def test_mlflow(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # begins at once; making a database takes many seconds
    settings = replace(config.logger.mlflow, enabled=True, tracking_uri=(tmp_path / "mlflow").as_uri())
    config = replace(config, logger=replace(config.logger, mlflow=settings))
    first = log(config, 1, 2, anew=True)
    assert log(config, 3, anew=False) == first
    client = mlflow.MlflowClient(settings.tracking_uri)
    run_id = json.loads(first)["mlflow"]
    history = client.get_metric_history(run_id, "train/avg_rate")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    run = client.get_run(run_id)
    assert run.data.params["ib_score.beta"] == "5.0"
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert log(config, 1, anew=True) != first


def wandb_records(file: Path) -> Iterator[bytes]:
    """Messages of a W&B log: 7 bytes, then LevelDB's log format, pieces that never cross a block of 32 KiB."""
    content, at, message = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        message = (b"" if kind in (1, 2) else message) + content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield message


def test_wandb_offline(config: RunConfig, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    config = replace(config, logger=replace(config.logger, wandb=replace(config.logger.wandb, enabled=True)))
    run_id = json.loads(log(config, 1, 2, anew=True))["wandb"]
    (file,) = tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")
    deadline = time.monotonic() + 60  # its own process writes the file, a moment after the run has finished
    while not (history := wandb_history(file)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [(row["step"], row["train/avg_rate"]) for row in history] == [("1", "0.1"), ("2", "0.2")]


def wandb_history(file: Path) -> list[dict[str, str]]:
    """What was logged, a mapping from name to JSON for each call."""
    from wandb.proto.wandb_internal_pb2 import Record

    records = [Record.FromString(message) for message in wandb_records(file)]
    return [
        {"".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
