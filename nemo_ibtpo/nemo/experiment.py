"""The directory of an experiment: one version for all ranks, and what NeMo keeps in it.

Invariants (tested by ``tests/unit/nemo/test_experiment.py`` and ``tests/with_nemo``):

- All ranks get the same version, which rank 0 chooses; rank 0 has set up the directory before another rank goes on.
- An earlier start's logs are moved to ``run_<n>``. What the run itself goes on with (metrics, status) stays.

With nemo_toolkit installed its ``exp_manager`` sets up the directory; without it the same is done here, apart from
the logs of NeMo and lightning, of which there are none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_ibtpo.checkpoints.directory import LATEST, CheckpointDirectory
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.exp_manager import experiment_name, is_new_each_time, log_dir, version_of_this_start
from nemo_ibtpo.config.exp_manager_schema import ExpManagerConfig
from nemo_ibtpo.nemo import toolkit

if TYPE_CHECKING:
    import torch.distributed as dist

CHECKPOINTS = "checkpoints"
# What exp_manager writes at every start; anything else in its directory belongs to the run.
_COMMAND, _GIT = "cmd-args.log", "git-info.log"
_LOGS = {_COMMAND, _GIT, "lightning_logs.txt", "nemo_error_log.txt"}
_RANK_LOG = "nemo_log_globalrank-"
_TIMEOUT = timedelta(minutes=30)


class Experiment:
    """The experiment of one start of a run; on every rank.

    Args:
        block: NeMo's ``exp_manager`` block.

    Attributes:
        version: of the experiment, None for one without versions; the same on all ranks.

    Raises:
        UserError: the ranks have no way to agree.
    """

    def __init__(self, block: ExpManagerConfig) -> None:
        self._block = block
        self._rank = int(os.environ.get("RANK", "0"))
        self._store = _store_of_the_ranks()
        self.version = self._agreed_version()

    def set_up(self, max_steps: int) -> None:
        """Make the directory and NeMo's files in it; returns when rank 0 has done so.

        Args:
            max_steps: of the run.

        Raises:
            UserError: the directory does not hold what ``resume_if_exists`` says, or a file cannot be copied.
        """
        if self._rank:
            assert self._store is not None
            self._store.wait(["set_up"], _TIMEOUT)
        else:
            self._check_checkpoints()
            self._check_files()
        if toolkit.is_installed():
            self._by_nemo(max_steps)
        elif self._rank == 0:
            self._without_nemo()
        if self._rank == 0:
            self._link_last()
            if self._store is not None:
                self._store.set("set_up", "")

    def _agreed_version(self) -> str | None:
        if self._store is None or not is_new_each_time(self._block):
            return version_of_this_start(self._block)
        if self._rank == 0:
            self._store.set("version", version_of_this_start(self._block) or "")
        return str(self._store.get("version").decode())

    @property
    def _log_dir(self) -> Path:
        return log_dir(self._block, self.version)

    def _check_checkpoints(self) -> None:
        block, root = self._block, self._log_dir / CHECKPOINTS
        found = bool(CheckpointDirectory(root, 1, 0).steps())
        if found and not block.resume_if_exists:
            raise UserError(
                f"{root} has checkpoints: exp_manager.resume_if_exists=true goes on from the newest, another "
                "exp_manager.name or version starts a new run"
            )
        if not found and block.resume_if_exists and not block.resume_ignore_no_checkpoint:
            if block.resume_from_checkpoint:
                return
            raise UserError(
                f"exp_manager.resume_if_exists=true, but {root} has no checkpoint: "
                "exp_manager.resume_ignore_no_checkpoint=true begins where there is none"
            )

    def _check_files(self) -> None:
        for name in self._block.files_to_copy or []:
            if not Path(name).is_file():
                raise UserError(f"exp_manager.files_to_copy: there is no file {name}")

    def _by_nemo(self, max_steps: int) -> None:
        block = self._block
        place: dict[str, Any] = (
            {"explicit_log_dir": block.explicit_log_dir}
            if block.explicit_log_dir
            else {"exp_dir": block.exp_dir, "version": self.version}
        )
        made = toolkit.set_up_experiment(
            {
                **place,
                "name": experiment_name(block),
                "resume_if_exists": block.resume_if_exists,
                "resume_ignore_no_checkpoint": True,  # what is not to be ignored has been refused
                "resume_from_checkpoint": block.resume_from_checkpoint,
                "files_to_copy": block.files_to_copy,
                "seconds_to_sleep": 0,
                # Metrics, checkpoints, timing and the time limit are the run's own, not those of a lightning loop.
                "create_tensorboard_logger": False,
                "create_checkpoint_callback": False,
                "log_step_timing": False,
                "log_tflops_per_sec_per_gpu": False,
            },
            max_steps,
        )
        assert made.absolute() == self._log_dir.absolute(), f"NeMo made {made}, not {self._log_dir}"
        if self._rank == 0:
            self._take_back()

    def _take_back(self) -> None:
        """Put the run's own files, which NeMo has moved to ``run_<n>`` with its logs, back into place."""
        runs = sorted(self._log_dir.glob("run_*"), key=lambda path: int(path.name.removeprefix("run_")), reverse=True)
        for run in runs:
            for file in run.iterdir():
                if not _is_log(file) and not (self._log_dir / file.name).exists():
                    file.rename(self._log_dir / file.name)

    def _without_nemo(self) -> None:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        if logs := [file for file in self._log_dir.iterdir() if file.is_file() and _is_log(file)]:
            archive = self._log_dir / f"run_{sum(1 for path in self._log_dir.glob('run_*') if path.is_dir())}"
            archive.mkdir()
            for file in logs:
                file.rename(archive / file.name)
        for name in self._block.files_to_copy or []:
            shutil.copy(name, self._log_dir)
        (self._log_dir / _COMMAND).write_text(" ".join(sys.argv))
        if commit := _git("rev-parse", "HEAD"):
            (self._log_dir / _GIT).write_text(f"commit hash: {commit}{_git('diff')}")

    def _link_last(self) -> None:
        """NeMo finds the checkpoint to go on from by a name that ends in ``last``."""
        link = self._log_dir / CHECKPOINTS / f"{experiment_name(self._block)}-last"
        link.parent.mkdir(exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(LATEST)


def _is_log(file: Path) -> bool:
    return file.name in _LOGS or file.name.startswith(_RANK_LOG)


def _git(*arguments: str) -> str:
    """What git prints about the current directory; empty where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _store_of_the_ranks() -> dist.Store | None:
    """The store in which torchrun's processes meet; None for a single process.

    torch.distributed itself starts later, when the backend is known.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise UserError("a run of several ranks with an exp_manager block is to be started by torchrun")
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"exp_manager/{attempt}", dist.TCPStore(address, port, is_master=False, timeout=_TIMEOUT))
