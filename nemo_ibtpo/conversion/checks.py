"""What can be said about a conversion before torch is imported: a wrong path is refused at once."""

from __future__ import annotations

from pathlib import Path

from nemo_ibtpo.checkpoints import MEGATRON, MODEL
from nemo_ibtpo.checkpoints.manifest import FILE_NAME, DamagedError, read_manifest
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.model_directory import Provider, read_config


def check_checkpoint(source: Path, provider: Provider) -> None:
    """Whether a directory is a checkpoint of a model that can be built, of files as large as its manifest promises.

    Args:
        source: the directory.
        provider: who knows the model.

    Raises:
        UserError: it is not.
    """
    if not source.is_dir():
        raise UserError(f"{source}: there is no such directory; give a checkpoint, such as <run>/checkpoints/latest")
    for part in (MEGATRON, MODEL):
        if not (source / part).is_dir():
            raise UserError(f"{source} has no {part}/: give a checkpoint, such as <run>/checkpoints/latest")
    if (source / FILE_NAME).exists():
        try:
            read_manifest(source)
        except DamagedError as error:
            raise UserError(f"{source} is damaged: {error}") from error
    read_config(source / MODEL / "config.json", provider)


def check_output(output: Path, force: bool) -> None:
    """Whether the output's name is free, or may be taken.

    Raises:
        UserError: it is not.
    """
    if output.exists() and not force:
        raise UserError(f"{output} is there already; choose another place, or replace it with --force")
