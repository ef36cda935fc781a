"""Which checkpoint a run goes on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nemo_ibtpo.checkpoints.directory import CheckpointDirectory
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import CheckpointConfig


def choose(
    directory: CheckpointDirectory,
    steps: Sequence[int],
    settings: CheckpointConfig,
    *,
    find_damage: Callable[[Path], str | None],
    set_aside: Callable[[int], Path],
    say: Callable[[str], None],
) -> Path | None:
    """The checkpoint to go on from; None if the run begins at the beginning.

    The run's own checkpoints come before the one that ``checkpoint.resume`` names, so that the same command goes on
    after a stop.

    Args:
        directory: of the run's checkpoints.
        steps: of the checkpoints in place, newest first.
        settings: ``resume`` and ``on_damage``.
        find_damage: why a checkpoint cannot be used; None if it is whole.
        set_aside: renames the checkpoint of a step; where it is now.
        say: prints a line.

    Raises:
        UserError: there are checkpoints but the run shall not resume, or the one to use is damaged.
    """
    if settings.resume == "never":
        if steps:
            raise UserError(
                f"{directory.root} holds checkpoints up to step {steps[0]}, but checkpoint.resume=never; "
                "set it to auto, choose another output_dir or remove them"
            )
        return None
    if not steps and settings.resume != "auto":
        path = Path(settings.resume)
        if damage := find_damage(path):
            raise UserError(f"checkpoint.resume={path}: {damage}")
        return path
    for step in steps:
        path = directory.path(step)
        damage = find_damage(path)
        if damage is None:
            return path
        if settings.on_damage == "refuse":
            raise UserError(
                f"{path} is damaged: {damage}; with checkpoint.on_damage=fall_back the newest whole one is used"
            )
        say(f"{path} is damaged: {damage}; set aside as {set_aside(step).name}")
    if steps:
        say("no whole checkpoint is left; the run begins again")
    return None
