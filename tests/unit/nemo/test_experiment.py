"""The directory of an experiment without NeMo: what it holds, what it keeps, and one version for all ranks.

Why this matters: ranks that write to different directories are found out after the first checkpoint at the earliest,
and moving a run's metrics away with the logs would tear its curves. With NeMo: ``tests/with_nemo``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from omegaconf import OmegaConf

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.exp_manager_schema import ExpManagerConfig
from nemo_ibtpo.config.loader import composition
from nemo_ibtpo.nemo import experiment, toolkit
from nemo_ibtpo.nemo.experiment import Experiment

Block = Callable[..., ExpManagerConfig]


@pytest.fixture(autouse=True)
def one_process_without_nemo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RANK", "WORLD_SIZE", "NEMO_EXPM_VERSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolkit, "is_installed", lambda: False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def block(tmp_path: Path) -> Block:
    def make(**values: Any) -> ExpManagerConfig:
        recipe = tmp_path / "mine.yaml"
        content = {"defaults": ["config", "_self_"], "model": {"path": "x"}}
        OmegaConf.save({**content, "exp_manager": {"exp_dir": str(tmp_path / "exps"), "name": "x", **values}}, recipe)
        composed = composition(str(recipe), [])
        made = composed.asked(composed.compose()).exp_manager
        assert made is not None
        return made

    return make


def test_an_earlier_starts_logs_are_moved_and_the_runs_files_stay(tmp_path: Path, block: Block) -> None:
    (tmp_path / "note.txt").write_text("for the record")
    going_on = block(resume_if_exists=True, resume_ignore_no_checkpoint=True, files_to_copy=["note.txt"])
    log_dir = tmp_path / "exps" / "x"
    for start in range(3):
        Experiment(going_on).set_up(max_steps=1)
        assert (log_dir / "note.txt").read_text() == "for the record"
        (log_dir / "cmd-args.log").write_text(f"start {start}")
        (log_dir / "metrics.jsonl").write_text("{}\n")
    assert (log_dir / "run_0" / "cmd-args.log").read_text() == "start 0"
    assert (log_dir / "run_1" / "cmd-args.log").read_text() == "start 1"
    assert not list(log_dir.glob("run_*/metrics.jsonl"))
    assert (log_dir / "checkpoints" / "x-last").readlink() == Path("latest")


def test_checkpoints_are_gone_on_from_only_if_that_is_asked_for(tmp_path: Path, block: Block) -> None:
    with pytest.raises(UserError, match=r"no checkpoint: .*resume_ignore_no_checkpoint=true begins"):
        Experiment(block(resume_if_exists=True)).set_up(1)
    (tmp_path / "exps" / "x" / "v" / "checkpoints" / "step_2").mkdir(parents=True)
    Experiment(block(resume_if_exists=True, version="v")).set_up(1)
    with pytest.raises(UserError, match=r"has checkpoints: .*resume_if_exists=true goes on"):
        Experiment(block(version="v")).set_up(1)


def test_a_file_to_copy_that_is_not_there(block: Block) -> None:
    with pytest.raises(UserError, match="files_to_copy: there is no file nowhere"):
        Experiment(block(files_to_copy=["nowhere"])).set_up(1)


def test_all_ranks_get_rank_zeros_version(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = dist.TCPStore("localhost", 0, is_master=True)  # torchrun has one
    for name, value in {
        "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(agent.port),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(experiment, "version_of_this_start", lambda _: next(versions))
    versions = iter(["chosen by rank 0", "another clock"])
    monkeypatch.setenv("RANK", "0")
    first = Experiment(block())
    monkeypatch.setenv("RANK", "1")
    second = Experiment(block())
    assert (first.version, second.version) == ("chosen by rank 0", "chosen by rank 0")
    first.set_up(1)
    second.set_up(1)  # returns, since rank 0 has set up


def test_ranks_that_cannot_agree_are_refused(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with pytest.raises(UserError, match="to be started by torchrun"):
        Experiment(block())
