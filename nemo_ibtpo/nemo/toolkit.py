"""The one module that imports nemo_toolkit: its ``hydra_runner`` composes, its ``exp_manager`` makes the directory.

NeMo trains with lightning and this package does not: the ``Trainer`` that ``exp_manager`` asks for says how many
nodes and processes there are and never fits anything, so neither lightning nor NeMo touches torch.distributed or a
GPU.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nemo_ibtpo.config.errors import UserError

_INSTALL = "install them with pip install 'nemo-ibtpo[nemo]'"


def is_installed() -> bool:
    """Whether there is a nemo_toolkit; what it needs may still be missing."""
    return importlib.util.find_spec("nemo") is not None and importlib.util.find_spec("nemo.utils") is not None


def toolkit_version() -> str:
    """Version of the installed nemo_toolkit."""
    return version("nemo_toolkit")


def import_resolvers() -> None:
    """Make known to OmegaConf what NeMo's configurations may use, such as ``${multiply:2,3}``.

    Raises:
        UserError: nemo_toolkit lacks a package that it needs.
    """
    try:
        import nemo.core.config  # noqa: F401
    except ImportError as error:
        raise _incomplete(error) from error


def under_hydra_runner(config: Path, overrides: Sequence[str], task: Callable[[DictConfig], int]) -> int:
    """Call ``task`` with what NeMo's ``hydra_runner`` composes, as a program that NeMo starts; what it returns.

    Args:
        config: the primary config.
        overrides: as Hydra takes them.
        task: its exceptions come out as they are; Hydra would tell them in its own way.
    """
    from nemo.core.config import hydra_runner

    outcome: list[int | BaseException] = []
    argv = list(sys.argv)

    @hydra_runner()
    def main(cfg: DictConfig) -> None:
        sys.argv = argv  # exp_manager keeps the command line as it was
        try:
            outcome.append(task(cfg))
        except BaseException as error:
            outcome.append(error)

    sys.argv = [argv[0], "--config-path", str(config.parent), "--config-name", config.stem, *overrides]
    try:
        main()
    finally:
        sys.argv = argv
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


def set_up_experiment(block: Mapping[str, Any], max_steps: int) -> Path:
    """Call NeMo's ``exp_manager``; the ``log_dir`` that it made.

    Rank 0 moves the files of an earlier start out of ``log_dir``: other ranks come after it.

    Args:
        block: in NeMo's names.
        max_steps: of the run.

    Raises:
        UserError: nemo_toolkit lacks a package that it needs.
    """
    try:
        from lightning.pytorch import Trainer
        from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
        from nemo.utils.exp_manager import exp_manager
    except ImportError as error:
        raise _incomplete(error) from error
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # Named outright: under srun lightning would take torchrun's processes for tasks of Slurm.
    environment = TorchElasticEnvironment() if "LOCAL_WORLD_SIZE" in os.environ else LightningEnvironment()
    trainer = Trainer(
        accelerator="cpu",
        devices=local,
        num_nodes=int(os.environ.get("WORLD_SIZE", "1")) // local,
        strategy="ddp" if local > 1 else "auto",
        plugins=[environment],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=max_steps,
    )
    return Path(exp_manager(trainer, dict(block)))


def _incomplete(error: ImportError) -> UserError:
    return UserError(f"nemo_toolkit is installed without the packages that it needs here ({error}); {_INSTALL}")
